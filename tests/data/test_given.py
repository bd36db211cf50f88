"""Data handed over in Python: the same rows as from files, and a run that trains on them."""

import numpy as np
import pytest
import torch
from PIL import Image

import fewstep
from fewstep.cli.main import main
from fewstep.data import given
from fewstep.data.digits import Digits
from fewstep.data.npz import Npz
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.models.source import Saved
from fewstep.training.config import TrainerConfig
from fewstep.yaml import read_yaml

PIXELS = np.random.default_rng(0).integers(256, size=(12, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(12) % 4


def everything(source):
    return source.dataset("all")


def test_the_rows_are_those_of_a_file(tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=PIXELS, arr_1=LABELS)
    there = Npz(path=str(tmp_path / "x.npz")).dataset("all")
    here = everything(fewstep.from_arrays(PIXELS, LABELS))
    assert torch.equal(here.images, there.images)
    assert torch.equal(here.labels, there.labels)
    assert here.fingerprint() == there.fingerprint()
    for split in ("train", "test"):
        mine, its = (
            source.dataset(split)
            for source in (fewstep.from_arrays(PIXELS, LABELS), Npz(path=str(tmp_path / "x.npz")))
        )
        assert mine.ids.tolist() == its.ids.tolist()


FIRST = PIXELS.transpose(0, 3, 1, 2)
ALIKE = [
    PIXELS,
    FIRST,
    torch.from_numpy(FIRST.copy()),
    PIXELS / 255,
    torch.from_numpy(PIXELS).float() / 255,
]


@pytest.mark.parametrize("images", ALIKE)
def test_layouts_and_numbers(images):
    held = everything(fewstep.from_arrays(images))
    assert torch.equal(held.images, torch.from_numpy(FIRST.copy()))
    assert held.labels is None


def test_grey_pictures_and_where_channels_stand():
    grey = PIXELS[..., 0]
    assert everything(fewstep.from_arrays(grey)).shape == (1, 6, 5)
    square = np.zeros((2, 3, 4, 3), np.uint8)
    assert everything(fewstep.from_arrays(square, channels="last")).shape == (3, 3, 4)
    assert everything(fewstep.from_arrays(square, channels="first")).shape == (3, 4, 3)
    with pytest.raises(ValueError, match=r"where are the channels of \(2, 3, 4, 3\)"):
        fewstep.from_arrays(square)


class Torch(torch.utils.data.Dataset):
    """As tutorials write them: it never raises IndexError."""

    def __init__(self, item):
        self.item = item

    def __len__(self):
        return len(PIXELS)

    def __getitem__(self, i):
        return self.item(i % len(PIXELS))


ITEMS = {
    "a picture of Pillow and its label": lambda i: (Image.fromarray(PIXELS[i]), int(LABELS[i])),
    "a tensor in [0, 1] and a tensor": lambda i: (
        torch.from_numpy(FIRST[i].copy()).float() / 255,
        torch.tensor(LABELS[i]),
    ),
    "a mapping": lambda i: {"img": PIXELS[i], "label": LABELS[i], "id": f"{i}"},
}


@pytest.mark.parametrize("kind", ITEMS)
def test_items_of_a_dataset(kind):
    held = everything(fewstep.from_dataset(Torch(ITEMS[kind])))
    assert held.fingerprint() == everything(fewstep.from_arrays(PIXELS, LABELS)).fingerprint()


def test_captions_and_images_alone():
    texts = [f"picture {i}" for i in range(12)]
    held = everything(fewstep.from_dataset(Torch(lambda i: (PIXELS[i], texts[i]))))
    assert held.rows(torch.arange(12), ["caption"])["caption"] == texts
    assert (
        everything(fewstep.from_arrays(PIXELS, captions=texts)).fingerprint() == held.fingerprint()
    )
    alone = everything(fewstep.from_dataset(iter(PIXELS)))
    assert list(alone.columns) == ["image"]


WRONG = {
    r"images have the shape .*, got \(12,\)": lambda: fewstep.from_arrays(LABELS),
    r"lie in \[0, 1\], got 0 … 255": lambda: fewstep.from_arrays(PIXELS.astype(float)),
    "not int32": lambda: fewstep.from_arrays(PIXELS.astype(np.int32)),
    "11 labels for 12 images": lambda: fewstep.from_arrays(PIXELS, LABELS[1:]),
    "1 captions for 12 images": lambda: fewstep.from_arrays(PIXELS, captions=["x"]),
    r"labels are \(n,\) whole numbers": lambda: fewstep.from_arrays(PIXELS, LABELS / 2),
    "labels": lambda: fewstep.from_arrays(PIXELS, LABELS, classes=3),
    "no items": lambda: fewstep.from_dataset([]),
    "an item has no image: a, b": lambda: fewstep.from_dataset([{"a": 1, "b": 2}]),
    "a dataset has items, this is of type int": lambda: fewstep.from_dataset(5),
    "an item has 3 parts": lambda: fewstep.from_dataset([(PIXELS[0], 1, 2)]),
    "only 1 of 2 items have a label": lambda: fewstep.from_dataset(
        [{"image": PIXELS[0], "label": 1}, {"image": PIXELS[1]}]
    ),
    "must be of one size": lambda: fewstep.from_dataset([PIXELS[0], PIXELS[1][:5]]),
    "'?splitt'?": lambda: fewstep.from_arrays(PIXELS, splitt="all"),
}


@pytest.mark.parametrize("says", WRONG)
def test_what_is_wrong_is_one_line(says):
    with pytest.raises((ValueError, TypeError), match=says) as caught:
        WRONG[says]()
    assert "\n" not in str(caught.value)


def test_a_run_trains_on_them_and_says_what_it_needs(tmp_path, monkeypatch, capsys):
    """As on the files that they are from; its file alone is not enough."""
    digits = Digits(limit=40).dataset("train")
    mine = fewstep.from_arrays(digits.images, digits.labels, classes=10, split="all")
    options = TrainerConfig(steps=2, batch=8, health_every=0, device="cpu")
    run = fewstep.Run(
        mine, ConsistencyDistillation(bins=4), Saved("digits_teacher"), trainer=options
    )
    student = fewstep.distil(run, tmp_path / "x", progress=False).student
    assert torch.isfinite(student.generate(labels=[3])).all()
    assert student.card["data"]["images"] == 40
    assert read_yaml(tmp_path / "x" / "run.yaml")["data"]["kind"] == "given"
    monkeypatch.setattr(given, "_HELD", {})
    with pytest.raises(SystemExit) as ended:
        main(["train", str(tmp_path / "x"), "name=again"])
    assert ended.value.code == 2
    assert "handed over in Python: hand them over again" in capsys.readouterr().err
