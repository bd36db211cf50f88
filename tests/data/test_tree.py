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


def test_links_in_circles_end(tmp_path):
    write(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    tree = walk(tmp_path)
    names = [str(file.relative_to(tmp_path)) for file in tree.files()]
    assert names == ["a/1.png", "b/2.png", "b/to_a/1.png"]
    reasons = {str(path.relative_to(tmp_path)): reason for path, reason in tree.passed()}
    assert reasons == {
        "a/up": "link to a folder above it",
        "b/to_a/up": "link to a folder above it",
    }


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
