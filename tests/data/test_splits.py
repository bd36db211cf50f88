"""Names of sets."""

from pathlib import Path

import pytest

from fewstep.data.splits import check_sets, of_training, set_of, training_of

ROOT = Path("data")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("train", "training"),
        ("TRAIN-00000-of-00002.parquet", "training"),
        ("Training_Set", "training"),
        ("trainval", "training"),
        ("t10k-images-idx3-ubyte", "test"),
        ("testImages", "test"),
        ("TestA", "test"),
        ("val2017", "validation"),
        ("devset", "validation"),
        ("eval", "validation"),
        ("unlabeled", "other"),
        ("latest", None),
        ("contest", None),
        ("strain", None),
        ("trainer", None),
        ("valley", None),
        ("device", None),
        ("", None),
        ("2017", None),
    ],
)
def test_what_a_name_speaks_of(name, kind):
    told = set_of(name)
    assert (told and told.kind) == kind


def test_words_that_say_nothing_of_sets():
    assert set_of("test_tube").rest == ("tube",)
    assert set_of("train_images_2017").rest == ()
    assert training_of(["test_tube", "test_pit"]) is None
    assert training_of(["training_a"]) == "training_a"


def paths(*names):
    return [ROOT / name for name in names]


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        ("train-0 train-1 test-0", "train-0 train-1"),
        ("Train-0 dev-0 eval-0 testing-0", "Train-0"),
        ("train/0 test/0", "train/0"),
        ("train/0 extra", "train/0"),
        ("latest test/0", "latest"),
        ("my_test/train-0 my_test/test-0", "my_test/train-0"),  # the nearest name speaks
        ("test-0 test-1", "test-0 test-1"),
        ("a b", "a b"),
        ("cifartrain1 cifartrain2 cifartest1", "cifartrain1 cifartrain2"),
        ("latest contest", "latest contest"),
    ],
)
def test_files_of_the_training_set(names, taken):
    assert of_training(paths(*names.split()), ROOT, by_name=True) == paths(*taken.split())


def test_files_of_no_set_go_with_the_training_set_unless_names_decide():
    assert of_training(paths("train-0", "b", "test"), ROOT) == paths("train-0", "b")


def test_only_tests_beside_a_training_set_that_nobody_reads(tmp_path):
    taken, train = tmp_path / "test-0.parquet", tmp_path / "train.json"
    for file in (taken, tmp_path / "train.py"):
        file.write_bytes(b"")
    check_sets([taken], tmp_path)
    train.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{train} cannot be read.*data\.path={taken}"):
        check_sets([taken], tmp_path)
    check_sets([taken], taken)  # asked for by its name
    check_sets([taken, train], tmp_path)
    train.unlink()
    with pytest.raises(ValueError, match="several sets, none of them for training"):
        check_sets([taken, tmp_path / "val"], tmp_path)
