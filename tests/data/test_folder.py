"""Folders of pictures: which files are taken, and what their names say about classes."""

import numpy as np
import pytest
import torch
from tests.data.picture_files import encoded, made, write_pictures

from fewstep.data.folder import Folder

A, B, C, D = made(4, shape=(3, 6, 6))[0]


def read(path, **options):
    return Folder(path=str(path), **options).read()


def order(dataset):
    """Which of the four pictures are where."""
    return "".join(
        "ABCD"[[np.array_equal(image, one) for one in (A, B, C, D)].index(True)]
        for image in dataset.images
    )


def test_class_folders_count_in_the_order_of_their_names(tmp_path):
    write_pictures(tmp_path, dog__2=C, cat__1=A, cat__deep__9=B, dog__1=D)
    dataset = read(tmp_path)
    assert (order(dataset), dataset.labels.tolist(), dataset.classes) == ("ABDC", [0, 0, 1, 1], 2)
    assert dataset.notes == {"files": f"4 below {tmp_path}", "class names": "cat, dog"}
    assert dataset.ids.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "names",
    [
        ("IMG_0001", "DSC_0002", "IMG_0003"),
        ("IMG0_1", "IMG1_2", "IMG0_3"),
        ("20231224_180000", "20231225_090000", "20231224_183000"),
        ("PXL_2023", "Screenshot_1", "PXL_2024"),
    ],
)
def test_what_cameras_write_is_no_class(tmp_path, names):
    write_pictures(tmp_path / "own", **{name: made(1)[0][0] for name in names})
    dataset = Folder(path=str(tmp_path / "own")).dataset("all")
    assert (dataset.labels, dataset.classes) == (None, 0)
    write_pictures(tmp_path / "own", cat_1=made(1)[0][0], cat_2=made(1)[0][0])
    assert Folder(path=str(tmp_path / "own")).dataset("all").classes > 1  # one word says what it is


def test_prefixes_count_in_the_order_of_their_names(tmp_path):
    write_pictures(tmp_path, cat_001=A, ant_7_x=B, cat_002=C)
    dataset = read(tmp_path)
    assert (order(dataset), dataset.labels.tolist(), dataset.classes) == ("BAC", [0, 1, 1], 2)
    assert dataset.notes["class names"] == "ant, cat"


@pytest.mark.parametrize("between", ["_", "__"])
def test_whole_numbers_are_classes_themselves(tmp_path, between):
    """As `sample --out` names its pictures: a class of which there is none must not move the
    others.
    """
    write_pictures(
        tmp_path, **{f"{n}{between}{i}": A for n, i in ((10, 0), (2, 1), (7, 2), (2, 3))}
    )
    dataset = read(tmp_path)
    assert dataset.labels.tolist() == [10, 2, 2, 7]
    assert (dataset.classes, dataset.notes["class names"]) == (11, "2, 7, 10")


@pytest.mark.parametrize("words", [("07", "2"), ("2", "x"), ("20190101", "3")])
def test_other_numbers_are_names(tmp_path, words):
    write_pictures(tmp_path, **{f"{word}__{i}": A for word in words for i in (0, 1)})
    assert read(tmp_path).labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "names",
    [
        ("000139", "000140", "000141"),
        ("a_1", "b_1", "c_1"),  # every picture its own class
        ("img_1", "img_2", "img_3"),
        ("all__1", "all__2", "all__3"),
        ("cat__1", "loose", "more"),
        ("cat_1", "dog_1", "loose"),
    ],
)
def test_names_that_tell_of_no_class(tmp_path, names):
    dataset = read(write_pictures(tmp_path, **dict.fromkeys(names, A)))
    assert (dataset.labels, dataset.classes, len(dataset)) == (None, 0, 3)
    assert dataset.notes["class names"] == "none"


def test_the_training_set_goes_before_the_test_set(tmp_path):
    write_pictures(tmp_path, test__cat__1=A, test__dog__1=B)
    only = read(tmp_path)
    assert (order(only), only.labels.tolist()) == ("AB", [0, 1])
    assert only.notes["files"] == f"2 below {tmp_path / 'test'}"
    write_pictures(tmp_path, train__cat__1=C, train__dog__1=D, val__cat__1=A)
    both = read(tmp_path)
    assert (order(both), both.labels.tolist()) == ("CD", [0, 1])
    passed = "beside train: 3 (test/cat/1.png, test/dog/1.png, val/cat/1.png)"
    assert both.notes["passed over"] == passed


def test_a_class_may_be_called_like_a_test(tmp_path):
    dataset = read(write_pictures(tmp_path, test_tube__val_1=A, test_pit__2=B))
    assert (order(dataset), dataset.labels.tolist()) == ("BA", [0, 1])


def test_pictures_by_their_suffix_and_nothing_hidden(tmp_path):
    for name, form in (("a.PNG", "PNG"), ("b.jpeg", "JPEG"), ("c.jpg", "JPEG"), ("d.webp", "WEBP")):
        (tmp_path / name).write_bytes(encoded(A, form))
    (tmp_path / "f.jfif").write_bytes(encoded(A, "JPEG"))
    (tmp_path / "g.jpe").write_bytes(encoded(A, "JPEG"))
    for name in ("._a.png", ".DS_Store", "readme.txt", "data.json", "e.gif", "no_suffix"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / ".thumbnails" / "a.png").write_bytes(b"x")
    (tmp_path / "empty.png").mkdir()
    dataset = read(tmp_path)
    assert len(dataset) == 6
    assert torch.equal(dataset.images[0], dataset.images[3])
    assert torch.equal(dataset.images[1], dataset.images[5])
    assert dataset.notes["passed over"] == (
        "hidden: 3 (.DS_Store, ._a.png, .thumbnails); .json: 1 (data.json); .gif: 1 (e.gif); "
        "no suffix: 1 (no_suffix); .txt: 1 (readme.txt); empty folder: 1 (empty.png)"
    )


def test_one_picture(tmp_path):
    write_pictures(tmp_path, a_1=A, b_2=B, a_3=C)
    dataset = read(tmp_path / "b_2.png")
    assert (order(dataset), dataset.labels) == ("B", None)


def test_sizes_and_channels(tmp_path):
    write_pictures(tmp_path, a=A, b=made(1, shape=(1, 6, 9))[0][0])
    with pytest.raises(ValueError, match=r"a\.png of 6×6 and .*b\.png of 6×9: size=N"):
        read(tmp_path)
    assert read(tmp_path, size=6).shape == (3, 6, 6)
    assert read(tmp_path, size=3, channels="grey").shape == (1, 3, 3)


def test_a_bad_file_keeps_labels_and_places_of_the_others(tmp_path):
    write_pictures(
        tmp_path, **{f"{word}__{i:03d}": A for word in ("ant", "bee") for i in range(60)}
    )
    whole = read(tmp_path)
    (tmp_path / "ant" / "007.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 of 120 .*ant/007\.png: it is empty"):
        read(tmp_path)
    dataset = read(tmp_path, on_bad="skip")
    assert dataset.ids.tolist() == [i for i in range(120) if i != 7]
    assert dataset.labels.tolist() == whole.labels[dataset.ids].tolist()
    assert dataset.notes["bad"] == f"1 of 120: {tmp_path}/ant/007.png: it is empty"
    (tmp_path / "ant" / "008.png").write_bytes(b"")
    with pytest.raises(ValueError, match="2 of 120"):
        read(tmp_path, on_bad="skip")


def test_a_link_to_nothing_and_an_empty_folder(tmp_path):
    write_pictures(tmp_path, a=A, b=A)
    (tmp_path / "b.png").unlink()
    (tmp_path / "b.png").symlink_to(tmp_path / "nowhere")
    dataset = read(tmp_path)
    assert (len(dataset), dataset.notes["passed over"]) == (1, "link to nothing: 1 (b.png)")
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match=r"no pictures .*nothing"):
        read(tmp_path / "c")


@pytest.mark.parametrize("workers", [1, 4])
def test_the_number_of_workers_changes_nothing(tmp_path, workers):
    images, labels = made(40, 4, (3, 9, 12))
    write_pictures(
        tmp_path, **{f"{label}__{i}": image for i, (image, label) in enumerate(zip(images, labels))}
    )
    alone, some = read(tmp_path, size=8), read(tmp_path, size=8, workers=workers)
    assert alone.fingerprint() == some.fingerprint()
    assert alone.notes == some.notes


def test_splits_limits_and_fractions(tmp_path):
    """Of a folder as of any source: chosen by the place among the sorted names."""
    write_pictures(tmp_path, **{f"{i:03d}": A for i in range(100)})
    folder = Folder(path=str(tmp_path))
    train, test = (folder.dataset(split).ids.tolist() for split in ("train", "test"))
    assert sorted(train + test) == list(range(100))
    assert 8 <= len(test) <= 32
    assert Folder(path=str(tmp_path), limit=7).dataset().ids.tolist() == train[:7]
    half = Folder(path=str(tmp_path), fraction=0.5).dataset().ids.tolist()
    assert set(half) < set(train)
    assert 0.3 < len(half) / len(train) < 0.7
