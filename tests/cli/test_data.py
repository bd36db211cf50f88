"""`fewstep data check`, and data that cannot be read, by every verb that reads data."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.cli.conftest import LOOP, NETWORK, STUDENT
from tests.data.idx_files import idx_bytes, write_idx, write_pair
from tests.data.picture_files import cifar_bytes, encoded, made, write_parquet, write_pictures

from fewstep.data.digits import Digits

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def mnist(*words):
    return ("train", "mnist_teacher", *NETWORK, *LOOP, "name=new", *words)


class TestData:
    def test_digits(self, done):
        out = done("data", "check", "digits")
        train, test = (len(Digits().dataset(split)) for split in ("train", "test"))
        assert "images: 1797 of 8×8, 1 channel\n" in out
        assert "178 182 177 183 181 182 181 179 174 180" in out
        assert f"split train: {train}\n" in out
        assert f"split test: {test}\n" in out
        assert Digits().dataset().fingerprint() in out

    def test_options(self, done):
        out = done("data", "check", "digits", "split=test", "fraction=0.5", "limit=20")
        assert "kept with these options: 20 (split test)" in out
        assert Digits(split="test", limit=20, fraction=0.5).dataset().fingerprint() in out

    def test_files_are_named(self, done, tmp_path):
        write_pair(tmp_path / "data", 40)
        out = done("data", "check", "data", "classes=12")
        assert "images file: data/train-images-idx3-ubyte" in out
        assert "labels file: data/train-labels-idx1-ubyte" in out
        assert "images in each: 4 4 4 4 4 4 4 4 4 4 0 0" in out

    def test_without_labels(self, done, tmp_path):
        write_pair(tmp_path / "data", 40)
        (tmp_path / "data" / "train-labels-idx1-ubyte").unlink()
        out = done("data", "check", "data")
        assert "labels file: none" in out
        assert "classes" not in out

    def test_captions(self, done, tmp_path):
        write_pictures(tmp_path / "data", **{name: made(1)[0][0] for name in "ab"})
        (tmp_path / "data" / "a.txt").write_text("a red bird\na bird on a tree\n")
        out = done("data", "check", "data")
        assert "captions: missing in 1 of 2 pictures, read as '': b.png\n" in out
        assert "captions in all: 2 in 2 rows, 4.0 words each, 5 different words\n" in out
        assert "longest caption: 5 words: a bird on a tree\n" in out
        assert "first captions: a red bird; a bird on a tree\n" in out

    def test_captions_that_a_model_does_not_read_to_their_end(self, done, monkeypatch):
        Path("x.txt").write_text("a b\nc d e\nf g h i")
        monkeypatch.setattr(
            "fewstep.models.conditioner.ConditionerModule.truncated",
            lambda _, captions: sum(len(caption) > 4 for caption in captions),
        )
        told = "captions that digits_teacher cannot read to their end: 2 of 3"
        assert told in done("data", "check", "x.txt", "--model", "digits_teacher")
        assert told not in done("data", "check", "x.txt")

    def test_for_a_model_of_captions(self, done):
        """The next command names it; pictures without captions are none for it."""
        pytest.importorskip("diffusers")
        write_pictures(Path("said"), a=made(1)[0][0])
        Path("said/a.txt").write_text("a red circle")
        out = done("data", "check", "said", "split=all", "--model", "shapes_teacher")
        command = "fewstep plan sd15_lcm_lora teacher=shapes_teacher data.path=said data.split=all"
        assert out.splitlines()[-1] == f"next: {command}"
        write_pictures(Path("mute"), a=made(1)[0][0])
        out = done("data", "check", "mute", "split=all", "--model", "shapes_teacher")
        assert "for shapes_teacher: no captions, by which it is asked" in out.splitlines()

    def test_the_command_that_comes_next(self, done, tmp_path):
        """For pictures, for captions, and none for prompts."""
        write_pair(tmp_path / "plain", 40)
        out = done("data", "check", "plain", "limit=30")
        assert out.endswith("next: fewstep train images_teacher data.path=plain data.limit=30\n")
        assert "next: fewstep train images_teacher data=digits\n" in done("data", "check", "digits")
        write_pictures(tmp_path / "two words", **{name: made(1)[0][0] for name in "ab"})
        (tmp_path / "two words" / "a.txt").write_text("a red bird")
        out = done("data", "check", "two words")
        assert out.endswith("next: fewstep plan sd15_lcm_lora 'data.path=two words'\n")
        Path("x.txt").write_text("a b\nc d e")
        assert "next:" not in done("data", "check", "x.txt")

    def test_a_contact_sheet(self, done, refused):
        """Of each class as many, small ones enlarged; larger ones become small."""
        out = done("data", "check", "digits", "--sheet", "digits.png")
        assert "contact sheet: digits.png, 100 pictures\n" in out
        with Image.open("digits.png") as image:
            assert (image.mode, image.size) == ("L", (623, 623))
            corner = np.asarray(image.crop((0, 0, 56, 56)).resize((8, 8), Image.Resampling.NEAREST))
        first = Digits().dataset()
        zero = first.images[first.labels.argsort(stable=True)[0], 0].numpy()
        assert (corner == zero).all()
        large = np.zeros((2, 300, 200, 3), np.uint8)
        large[1] = 200
        np.savez("x.npz", arr_0=large)
        done("data", "check", "x.npz", "split=all", "--sheet", "x.png")
        with Image.open("x.png") as image:
            assert image.size[0] < 700
            assert sorted(set(np.asarray(image)[..., 0].flatten())) == [0, 128, 200]
        refused(2, "data", "check", "digits", "--sheet", "x.jpg", says=[".png"])
        Path("x.txt").write_text("a b\nc d e")
        refused(2, "data", "check", "x.txt", "--sheet", "y.png", says="no images, only caption")


class TestRefused:
    def test_missing(self, refused):
        refused(2, *mnist(), says="data.path=")
        refused(2, *mnist("data.path=nowhere"), says=["nowhere", "expected a folder or a file"])
        refused(2, "data", "check", "nowhere", says=["nowhere", "digits"])
        refused(2, "evaluate", "runs/cd", "--reference", "nowhere", says=["nowhere", "digits"])

    def test_an_empty_folder(self, refused):
        Path("data").mkdir()
        refused(2, *mnist("data.path=data"), says=["no IDX images in data", "nothing"])

    def test_a_file_that_is_no_data(self, refused):
        Path("notes.md").write_text("x")
        refused(2, "data", "check", "notes.md", says="notes.md")

    def test_truncated(self, refused, tmp_path):
        images, _ = write_pair(tmp_path / "data", 30)
        (tmp_path / "data" / IMAGES).write_bytes(idx_bytes(images)[:-100])
        refused(2, *mnist("data.path=data"), says=[IMAGES, "1920", "1820"])
        refused(2, "data", "check", "data", says=IMAGES)

    def test_a_forged_header_is_no_lack_of_memory(self, refused, tmp_path):
        images, _ = write_pair(tmp_path / "data", 30)
        content = bytearray(idx_bytes(images))
        content[4] = 0x80
        (tmp_path / "data" / IMAGES).write_bytes(content)
        refused(2, "data", "check", "data", says=IMAGES)

    def test_labels_out_of_range(self, refused, tmp_path):
        write_pair(tmp_path / "data", 30)
        write_idx(tmp_path / "data" / LABELS, np.where(np.arange(30) == 7, 12, 3))
        refused(
            2, *mnist("data.path=data"), says=[LABELS, "0 … 9", "12 of image 7", "data.classes"]
        )

    def test_counts_that_differ(self, refused, tmp_path):
        write_pair(tmp_path / "data", 30)
        write_idx(tmp_path / "data" / LABELS, np.zeros(7))
        refused(2, *mnist("data.path=data"), says=[LABELS, "7 labels", "30 images"])

    def test_a_model_that_is_none(self, refused):
        refused(2, "data", "check", "digits", "--model", "nowhere", says="nowhere")

    def test_options_of_data_check(self, refused):
        refused(2, "data", "check", "digits", "limt=3", says=["limt", "did you mean limit"])
        refused(2, "data", "check", "digits", "limit=abc", says=["limit", "'abc'"])
        refused(2, "data", "check", "digits", "limit", says="limit")

    def test_what_cannot_begin_leaves_no_run(self, refused, runs):
        """An empty folder of that name would be taken for a run by the next command."""
        write_pair(Path("data"), 30, size=12)
        refused(2, *mnist("data.path=nowhere"))
        refused(2, *mnist("data.path=data", "teacher.network.multipliers=[1,1,1,1]"))
        refused(2, *STUDENT, "name=new", "teacher=nobody")
        assert sorted(path.name for path in runs.iterdir()) == ["cd", "tiny"]


class TestPictures:
    """Sources of pictures, by every verb that reads data."""

    def test_bad_pictures_are_named(self, refused):
        write_pictures(Path("data"), a=made(1)[0][0])
        Path("data/b.png").write_bytes(b"no picture")
        line = refused(2, "data", "check", "data", says=["data/b.png", "1 of 2", "on_bad=skip"])
        assert line == refused(2, "evaluate", "runs/cd", "--reference", "data")
        refused(2, "data", "check", "data", "on_bad=skip", says=["data/b.png", "1%"])

    def test_pictures_of_several_sizes(self, fewstep):
        """They are read as the recipes for pictures take them, and that is said."""
        write_pictures(Path("data"), a=made(1)[0][0], b=made(1, shape=(3, 20, 40))[0][0])
        found = fewstep("data", "check", "data", "split=all")
        assert found.code == 0
        lines = found.out.splitlines()
        assert "sizes: different; their middle squares at 32×32, another side by size=N" in lines
        assert "images: 2 of 32×32, 3 channels" in lines
        assert lines[-1] == "next: fewstep train images_teacher data.path=data data.split=all"
        assert (
            "images: 2 of 16×16, 3 channels"
            in fewstep("data", "check", "data", "size=16", "split=all").out
        )

    def test_damaged_files_of_each_kind(self, refused):
        images, labels = made(20)
        Path("data").mkdir()
        Path("data/data_batch_1.bin").write_bytes(cifar_bytes(images, labels)[:-1])
        refused(2, "data", "check", "data", says=["data/data_batch_1.bin", "3073"])
        Path("data/data_batch_1").write_bytes(
            b"\x80\2cos\nsystem\n(Vtouch marker\ntR" + b"." * 100_000
        )
        refused(2, "data", "check", "data", says=["data/data_batch_1", "os.system"])
        assert not Path("marker").exists()
        file = write_parquet(Path("tables/train.parquet"), map(encoded, images), label=labels)
        file.write_bytes(file.read_bytes()[:-5])
        refused(2, "data", "check", "tables", says="tables/train.parquet")

    def test_an_option_of_another_kind(self, refused):
        write_pictures(Path("data"), a=made(1)[0][0])
        refused(
            2,
            "data",
            "check",
            "data",
            "labels=coarse",
            says=["folder has no option 'labels'", "labels"],
        )
        refused(2, "data", "check", "data", "kind=cifr", says=["cifr", "did you mean cifar"])
        refused(2, "data", "check", "data", "kind=cifar", says=["no CIFAR", "found: a.png"])

    def test_what_was_found_is_shown(self, fewstep):
        images, labels = made(20)
        Path("data").mkdir()
        Path("data/test_batch.bin").write_bytes(cifar_bytes(images, labels))
        lines = fewstep("data", "check", "data").out.splitlines()
        assert lines[:2] == ["kind: cifar", "files: data/test_batch.bin"]
        assert "classes: 10, images in each: 2 2 2 2 2 2 2 2 2 2" in lines


def test_a_picture_for_which_there_is_no_memory_is_named(refused, tmp_path, monkeypatch):
    """No option of a training would help."""

    def full(*_):
        raise MemoryError

    write_pictures(tmp_path, a=made(1)[0][0], b=made(1)[0][0])
    monkeypatch.setattr("fewstep.data.pictures._loaded", full)
    line = refused(5, "data", "check", tmp_path, says=["a.png", "memory"])
    assert "micro_batch" not in line
