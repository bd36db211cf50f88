"""Sub-folders that are sets or classes: told for sure, or an error with a choice."""

import pytest
from tests.data.picture_files import made, write_pictures

from fewstep.data.folder import Folder

PICTURE = made(1, shape=(1, 4, 4))[0][0]


def read(path, **options):
    return Folder(path=str(path), **options).read()


def write(folder, *names):
    return write_pictures(folder, **dict.fromkeys(names, PICTURE))


def sets(folder, *names):
    """A folder of two classes for each name, with one picture of each, and two for the first."""
    for name in names:
        write(folder, f"{name}__cat__1", f"{name}__dog__1")
    return write(folder, f"{names[0]}__cat__2", f"{names[0]}__dog__2")


@pytest.mark.parametrize(
    "names",
    [
        ("Train", "Test"),
        ("TRAIN", "VAL"),
        ("train2017", "val2017", "test2017"),
        ("training", "testing"),
        ("training_set", "test_set"),
        ("trainSet", "testSet"),
        ("trainset", "validset"),
        ("train", "dev"),
        ("train", "eval"),
        ("train", "test", "extra"),
        ("train_images", "test_images"),
        ("Training-Data", "Evaluation-Data"),
        ("ILSVRC2012_img_train", "ILSVRC2012_img_val"),
        ("seg_train__seg_train", "seg_test__seg_test"),
        ("data__train", "data__test"),
        ("mytrain", "mytest"),
        ("pettrainers", "held_out"),  # they hold the same sub-folders
        ("train", "held_back"),
    ],
)
def test_names_of_sets_are_no_classes(tmp_path, names):
    dataset = read(sets(tmp_path, *names))
    assert (len(dataset), dataset.classes, dataset.labels.tolist()) == (4, 2, [0, 0, 1, 1])
    assert dataset.notes["class names"] == "cat, dog"
    test = 2 * (len(names) - 1)
    assert dataset.notes["passed over"].startswith(f"beside {names[0].split('__')[-1]}: {test} ")
    without = read(tmp_path, label="none")
    assert (len(without), without.labels) == (4, None)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("test", "val"), "none of them for training, test, val"),
        (("trainA", "trainB", "testA"), "several sets, testA, trainA, trainB"),
        (("train", "test", "bird"), "bird stands beside test, train"),
        (("cat", "dog", "test"), "cat stands beside test"),
        (("photo", "sketch"), "photo, sketch … hold the same sub-folders"),
        (("train1", "train2"), "several sets, train1, train2|train1, train2 … hold the same"),
    ],
)
def test_doubt_is_an_error_with_a_choice(tmp_path, names, reason):
    sets(tmp_path, *names)
    with pytest.raises(ValueError, match=f"{tmp_path}: cannot tell .*({reason}).*label=folder"):
        read(tmp_path)
    dataset = read(tmp_path, label="folder")
    assert dataset.notes["class names"] == ", ".join(sorted(names))
    assert len(read(tmp_path / names[0])) == 4


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (("train__1", "bus__1", "car__1"), "bus, car, train"),
        (("train_station__1", "bus_station__1"), "bus_station, train_station"),
        (("latest__1", "contest__1"), "contest, latest"),
        (("all__cat__1", "all__dog__1"), "cat, dog"),
        (("n1__images__1", "n2__images__1", "n2__images__2"), "n1, n2"),
        (("cat__young__1", "cat__old__1", "dog__1"), "cat, dog"),
        (("train_1", "train_2", "bus_1"), "bus, train"),
    ],
)
def test_classes_that_look_like_sets_or_hold_folders(tmp_path, names, classes):
    assert read(write(tmp_path, *names)).notes["class names"] == classes


def test_pictures_of_sets_without_classes(tmp_path):
    dataset = read(write(tmp_path, "traincats__1", "traincats__2", "testcats__1"))
    assert (len(dataset), dataset.labels) == (2, None)
    assert dataset.notes["passed over"] == "beside traincats: 1 (testcats/1.png)"


def test_sets_inside_the_classes(tmp_path):
    names = ("cat__train__1", "cat__test__1", "dog__train__1", "dog__train__2", "dog__test__1")
    dataset = read(write(tmp_path, *names))
    assert (len(dataset), dataset.labels.tolist()) == (3, [0, 1, 1])
    assert dataset.notes["passed over"] == "beside train: 2 (cat/test/1.png, dog/test/1.png)"
    write(tmp_path, "eel__test__1")  # nothing to train on
    with pytest.raises(ValueError, match=r"no picture .* class eel"):
        read(tmp_path)
    write(tmp_path, "eel__1")
    with pytest.raises(ValueError, match=r"eel: cannot tell .* lie beside train"):
        read(tmp_path)


def test_sets_in_front_of_names(tmp_path):
    write(tmp_path, "train_cat_1", "train_cat_2", "train_dog_1", "test_cat_1", "test_dog_1")
    dataset = read(tmp_path)
    assert (dataset.labels.tolist(), dataset.notes["class names"]) == ([0, 0, 1], "cat, dog")
    assert dataset.notes["passed over"] == "beside train: 2 (test_cat_1.png, test_dog_1.png)"
    write(tmp_path / "plain", "Train1", "Train2", "Val1", "Val2")
    dataset = read(tmp_path / "plain")
    assert (len(dataset), dataset.labels) == (2, None)
    write(tmp_path / "mixed", "train_1", "test_1", "test_2", "cat_1")
    with pytest.raises(ValueError, match=r"cannot tell .*cat stands beside test, train"):
        read(tmp_path / "mixed")


def test_sets_behind_the_class_of_names(tmp_path):
    write(tmp_path, "cat_train_1", "cat_train_2", "cat_test_1", "dog_train_1", "dog_test_1")
    dataset = read(tmp_path)
    assert (dataset.labels.tolist(), dataset.notes["class names"]) == ([0, 0, 1], "cat, dog")
    assert dataset.notes["passed over"] == "beside train: 2 (cat_test_1.png, dog_test_1.png)"
    write(tmp_path / "one", "my-train_1", "my-train_2", "my-test_1")
    dataset = read(tmp_path / "one")
    assert (len(dataset), dataset.labels) == (2, None)
    assert dataset.notes["passed over"] == "beside my-train: 1 (my-test_1.png)"


@pytest.mark.parametrize("content", [None, "empty", "unread", "packed"])
def test_a_training_set_that_cannot_be_read_is_not_replaced_by_the_test_set(tmp_path, content):
    write(tmp_path, "test__cat__1", "test__dog__1")
    if content == "packed":
        (tmp_path / "train.zip").write_bytes(b"PK")
    elif content:
        (tmp_path / "train" / "cat").mkdir(parents=True)
    if content == "unread":
        (tmp_path / "train" / "cat" / "1.bmp").write_bytes(b"BM")
    if content is None:
        assert len(read(tmp_path)) == 2
        return
    with pytest.raises(ValueError, match=str(tmp_path / "train")):
        read(tmp_path)


@pytest.mark.parametrize("inside", [None, "1.bmp", "1.tif", "1.gif", "readme.txt", ".hidden.png"])
@pytest.mark.parametrize("option", ["auto", "folder"])
def test_a_class_folder_without_a_picture(tmp_path, inside, option):
    write(tmp_path, "cat__1", "eel__1")
    (tmp_path / "dog").mkdir()
    if inside:
        (tmp_path / "dog" / inside).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"no picture .* in the class dog; .*label=none"):
        read(tmp_path, label=option)
    dataset = read(tmp_path, label="none")
    assert (len(dataset), dataset.labels) == (2, None)
    assert "dog" in dataset.notes["passed over"]


@pytest.mark.parametrize("inside", [None, "1.gif"])
def test_the_other_of_two_class_folders_without_a_picture(tmp_path, inside):
    write(tmp_path, "cat__1")
    (tmp_path / "dog").mkdir()
    if inside:
        (tmp_path / "dog" / inside).write_bytes(b"x")
    with pytest.raises(ValueError, match="class dog"):
        read(tmp_path)


def test_a_class_whose_pictures_are_all_damaged(tmp_path):
    """Left out as damaged, they would take their class along."""
    write(tmp_path, *[f"cat__{i}" for i in range(120)])
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"no picture .* in the class dog"):
        read(tmp_path, on_bad="skip")


def test_folders_of_other_things_beside_the_pictures(tmp_path):
    write(tmp_path, "images__cat__1", "images__dog__1")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "1.xml").write_bytes(b"x")
    dataset = read(tmp_path)
    assert dataset.notes["class names"] == "cat, dog"
    assert dataset.notes["passed over"] == ".xml: 1 (annotations/1.xml)"


def test_pictures_beside_class_folders(tmp_path):
    write(tmp_path, "cat__1", "dog__1", "loose")
    with pytest.raises(ValueError, match=r"loose\.png.* beside .*cat, dog.*label=none.*label=f"):
        read(tmp_path)
    assert len(read(tmp_path, label="none")) == 3
    dataset = read(tmp_path, label="folder")
    assert dataset.labels.tolist() == [0, 1]
    assert dataset.notes["passed over"] == "beside the class folders: 1 (loose.png)"


def test_a_folder_beside_sets_that_hold_nothing(tmp_path):
    """A test set among pictures of no set is neither trained on nor left out by a guess."""
    write(tmp_path, "1", "2", "test__1")
    with pytest.raises(ValueError, match="pictures lie beside test"):
        read(tmp_path)


@pytest.mark.parametrize(
    "names", [("cat", "cat_test", "dog", "dog_test"), ("cat", "catVal"), ("cat", "train_cat")]
)
def test_a_class_and_its_name_with_a_set(tmp_path, names):
    write(tmp_path, *(f"{name}__{i}" for name in names for i in range(2)))
    with pytest.raises(ValueError, match=r"cat stands beside .*: give .*, or label=folder"):
        read(tmp_path)
    assert read(tmp_path, label="folder").classes == len(names)


def test_names_of_classes_beside_one_folder(tmp_path):
    write(tmp_path, "cat_1", "cat_2", "dog_1", "dog_2", "more__1")
    with pytest.raises(ValueError, match=r"\(cat_1\.png\) lie beside .*\(more\): label=none"):
        read(tmp_path)
    assert read(tmp_path, label="none").labels is None
    assert len(read(tmp_path, label="none")) == 5


def test_nearly_all_names_are_of_classes(tmp_path):
    names = [f"{i % 3}_{i}" for i in range(9)]
    write(tmp_path, *names, "readme")
    told = r"readme\.png has no class in its name, of 10 pictures 9 have one \(0_0.*label=none"
    with pytest.raises(ValueError, match=told):
        read(tmp_path)
    assert read(tmp_path, label="none").labels is None
    write(tmp_path, "other")  # so many have none that the others mean nothing
    assert (len(read(tmp_path)), read(tmp_path).labels) == (11, None)
