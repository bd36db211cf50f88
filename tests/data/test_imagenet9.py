"""Nine groups of animals by WordNet id."""

import dataclasses

import pytest
from tests.data.wnids import WNIDS, write_wnids

from fewstep.data.imagenet9 import GROUPS, Imagenet9, group
from fewstep.data.source import Source

NAMES = ["dog", "cat", "frog", "turtle", "bird", "monkey", "fish", "crab", "insect"]


def test_the_groups():
    assert list(GROUPS) == NAMES
    assert {wnid: group(wnid) for wnids in WNIDS.values() for wnid in wnids} == {
        wnid: name for name, wnids in WNIDS.items() for wnid in wnids
    }
    assert [group(name) for name in ("", "n02085", "n020856200", "dog", "train")] == [""] * 5


@pytest.mark.parametrize("below", ["", "train"])
def test_every_picture_gets_its_group(tmp_path, below):
    greys = write_wnids(tmp_path / below)
    (tmp_path / below / "n02085620" / "readme.txt").write_text("no picture")
    if below:  # pictures for testing are not trained on
        write_wnids(tmp_path / "val")
    found = Imagenet9(path=str(tmp_path), size=16, split="all").dataset()
    assert found.classes == 9
    assert found.shape == (3, 16, 16)
    assert len(found) == sum(name != "" for name in greys.values())
    for image, label in zip(found.images, found.labels):
        assert NAMES[label] == greys[int(image[0, 0, 0])]
    assert found.notes["class names"] == ", ".join(NAMES)


def test_the_first_pictures_of_each_folder(tmp_path):
    write_wnids(tmp_path, each=3)
    whole = Imagenet9(path=str(tmp_path), size=8, split="all")
    some = dataclasses.replace(whole, per_folder=2)
    values = [int(image[0, 0, 0]) for image in some.dataset().images]
    assert len(values) == len(whole.dataset()) * 2 // 3
    assert all(value % 3 < 2 for value in values)


def test_a_folder_without_such_names(tmp_path):
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "x.png").write_bytes(b"")
    with pytest.raises(ValueError, match="folders like n02085620"):
        Imagenet9(path=str(tmp_path)).dataset()


def test_it_is_not_taken_for_a_plain_folder_of_pictures(tmp_path):
    """Who wants nine groups says so: the kind found for a path has one class per folder."""
    write_wnids(tmp_path)
    assert Source.kind_at(tmp_path) == "folder"


def test_what_is_left_out_is_counted(tmp_path):
    """Other classes, what is beyond `per_folder`, other sets, whatever they are called."""
    write_wnids(tmp_path / "Train", each=2)
    write_wnids(tmp_path / "val2012")
    (tmp_path / "Train" / "n00000001").mkdir()
    (tmp_path / "Train" / "n00000001" / "x.png").write_bytes(b"")
    dataset = Imagenet9(path=str(tmp_path), size=8, per_folder=1).read()
    told = dataset.notes["passed over"]
    for reason in ("beside Train: ", "beyond per_folder: ", "outside the nine groups: "):
        assert reason in told
    everything = sum(file.is_file() for file in tmp_path.rglob("*"))
    counts = [int(part.split(": ")[1].split(" ")[0]) for part in told.split("; ")]
    assert len(dataset) + sum(counts) == everything


def test_a_folder_of_a_group_without_a_picture(tmp_path):
    write_wnids(tmp_path)
    (tmp_path / "n02085782").mkdir()
    with pytest.raises(ValueError, match=r"no picture .*n02085782"):
        Imagenet9(path=str(tmp_path)).read()
