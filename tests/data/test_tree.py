"""What lies in a folder is taken once, or counted with its reason."""

import os

from fewstep.data.tree import files_below, passed_over, walk


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_everything_is_taken_or_passed_over(tmp_path):
    write(tmp_path, "b/1.png", "b/2.PNG", "b/x.txt", "a.png", "c", ".d/1.png", "__MACOSX/._a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    (tmp_path / "empty").mkdir()
    tree = walk(tmp_path, (".png",))
    assert tree.files() == [tmp_path / name for name in ("a.png", "b/1.png", "b/2.PNG")]
    assert [path.name for path in tree.loose] == ["a.png"]
    passed = {path.name: reason for path, reason in tree.passed()}
    assert passed == {
        "x.txt": ".txt",
        "c": "no suffix",
        ".d": "hidden",
        "__MACOSX": "hidden",
        "pipe.png": "special file",
        "gone.png": "link to nothing",
        "round.png": "link to nothing",
        "empty": "empty folder",
    }


def test_no_folder_is_read_twice_and_links_in_circles_end(tmp_path):
    home, other = tmp_path / "home", tmp_path / "other"
    write(home, "a/1.png", "b/2.png")
    write(other, "3.png")
    for link, target in (
        ("a/up", home),
        ("a/out", tmp_path),
        ("b/to_a", home / "a"),
        ("c", other),
    ):
        (home / link).symlink_to(target)
    (other / "round").symlink_to(other)
    tree = walk(home)
    names = [str(file.relative_to(home)) for file in tree.files()]
    assert names == ["a/1.png", "b/2.png", "c/3.png"]
    passed = [str(path.relative_to(home)) for path, _ in tree.passed()]
    assert passed == ["a/out", "a/up", "b/to_a", "c/round"]
    assert {reason for _, reason in tree.passed()} == {"link to a folder that is read itself"}


def test_levels(tmp_path):
    write(tmp_path, "1", "a/2", "a/b/3")
    assert files_below(tmp_path, 1) == [tmp_path / "1"]
    assert files_below(tmp_path, 2) == [tmp_path / "1", tmp_path / "a/2"]
    assert walk(tmp_path, None, 2).passed() == [(tmp_path / "a/b", "deeper folder")]
    assert files_below(tmp_path / "1") == [tmp_path / "1"]
    assert files_below(tmp_path / "nowhere") == []


def test_the_note_counts_and_names(tmp_path):
    passed = [(tmp_path / f"{i}.gif", ".gif") for i in range(5)] + [(tmp_path / "x", "hidden")]
    told = passed_over(passed, tmp_path)
    assert told == {"passed over": ".gif: 5 (0.gif, 1.gif, 2.gif, …); hidden: 1 (x)"}
    assert passed_over([], tmp_path) == {}
