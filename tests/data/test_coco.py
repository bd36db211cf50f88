"""Pictures with annotations/captions_*.json."""

import json

import pytest
import torch
from tests.data.picture_files import encoded, made
from tests.data.test_caption_layouts import NAMES, ONE, SEVERAL, coco

from fewstep.data.coco import Coco


def read(path, **options):
    return Coco(path=str(path), split="all", **options).read()


def rewritten(folder, change, split="train2017"):
    file = folder / "annotations" / f"captions_{split}.json"
    whole = json.loads(file.read_text())
    change(whole)
    file.write_text(json.dumps(whole))


def first(dataset):
    return dataset.rows(torch.arange(1))["caption"][0]


def test_the_training_set_goes_first(tmp_path):
    coco(tmp_path, ONE, "val2017")
    assert first(read(tmp_path)) == "a red bird"
    coco(tmp_path, [("of training",)] * 4, "train2017")
    dataset = read(tmp_path)
    assert first(dataset) == "of training"
    assert "4 (val2017/a.png" in dataset.notes["passed over"]
    assert ".json: 1 (annotations/captions_val2017.json)" in dataset.notes["passed over"]
    assert first(read(tmp_path / "annotations" / "captions_val2017.json")) == "a red bird"


def test_several_training_sets_must_be_named(tmp_path):
    for split in ("train2014", "train2017"):
        coco(tmp_path, ONE, split)
    with pytest.raises(ValueError, match=r"found several, .*2014.*2017.*names one"):
        read(tmp_path)
    assert len(read(tmp_path / "annotations" / "captions_train2014.json")) == 4


def test_training_pictures_without_captions_are_no_reason_to_train_on_others(tmp_path):
    coco(tmp_path, ONE, "val2017")
    (tmp_path / "train2017").mkdir()
    (tmp_path / "train2017" / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train2017/a\.jpg cannot be read as training data"):
        read(tmp_path)


@pytest.mark.parametrize("place", ["images/train2017", "images", "."])
def test_where_the_pictures_may_lie(tmp_path, place):
    coco(tmp_path, ONE)
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (tmp_path / "train2017" / name).rename(tmp_path / place / name)
    assert len(read(tmp_path)) == 4


def test_where_they_lie_nowhere(tmp_path):
    coco(tmp_path, ONE)
    (tmp_path / "train2017").rename(tmp_path / "pictures")
    with pytest.raises(ValueError, match=r"captions_train2017.json \(a.png …\) lie in none of"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"expected annotations/captions_.* found none"):
        read(tmp_path / "pictures")


def test_a_listed_picture_that_is_not_there(tmp_path):
    coco(tmp_path, ONE)
    (tmp_path / "train2017" / "b.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 4 pictures cannot be read .*b\.png: no such file"):
        read(tmp_path)
    with pytest.raises(ValueError, match="1 of 4"):
        read(tmp_path, on_bad="skip")


def test_one_in_a_hundred_may_be_left_out(tmp_path):
    coco(tmp_path, ONE)
    picture = encoded(made(1, shape=(3, 4, 4))[0][0])
    for i in range(196):
        (tmp_path / "train2017" / f"x{i:03}.png").write_bytes(picture)

    def more(whole):
        whole["images"] += [{"id": f"{i}", "file_name": f"x{i:03}.png"} for i in range(196)]

    rewritten(tmp_path, more)
    (tmp_path / "train2017" / "b.png").unlink()
    dataset = read(tmp_path, on_bad="skip")
    assert len(dataset) == 199
    assert dataset.notes["bad"] == f"1 of 200: {tmp_path}/train2017/b.png: no such file"
    assert dataset.rows(torch.arange(3))["caption"] == ["a red bird", "", "größer ‘x’"]


def test_what_is_not_listed_is_counted(tmp_path):
    coco(tmp_path, SEVERAL)
    (tmp_path / "train2017" / "z.png").write_bytes(b"")
    rewritten(tmp_path, lambda w: w["annotations"].append({"image_id": 99, "caption": "x"}))
    dataset = read(tmp_path)
    assert dataset.notes["captions of pictures that are not listed"] == "1"
    assert dataset.notes["passed over"] == ".png: 1 (train2017/z.png)"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("annotations"), "no list of annotations"),
        (lambda w: w.update(images=[]), "has no images"),
        (lambda w: w.update(images={"a": 1}), "no list of images"),
        (lambda w: w["images"].append(3), "no list of images"),
        (lambda w: w["images"][1].pop("id"), "picture 1 has no file_name and id"),
        (lambda w: w["images"][0].update(file_name="../x"), "picture 0: '../x' is no name"),
        (lambda w: w["images"][0].update(file_name="/x"), "picture 0: '/x' is no name"),
        (lambda w: w["images"][2].update(file_name="a\0"), r"picture 2: 'a\\x00' is no name"),
        (lambda w: w["images"][3].update(id=12), "picture 3: a.png or its id 12 is there twice"),
        (lambda w: w["annotations"][2].pop("caption"), "annotation 2 has no caption and image_id"),
        (lambda w: w["annotations"][0].update(caption=1), "annotation 0 has no caption"),
        (lambda w: w["annotations"][0].update(image_id=[1]), "annotation 0 has no caption"),
    ],
)
def test_damage_is_named(tmp_path, change, says):
    coco(tmp_path, ONE)
    rewritten(tmp_path, change)
    with pytest.raises(ValueError, match=rf"captions_train2017\.json.*{says}"):
        read(tmp_path)


def test_what_is_no_json(tmp_path):
    coco(tmp_path, ONE)
    (tmp_path / "annotations" / "captions_train2017.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"captions_train2017\.json is damaged"):
        read(tmp_path)
