"""`fewstep evaluate` of images that lie somewhere: they are read as data are, in the channels of
the judge, whatever holds them.
"""

import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.idx_files import write_idx
from tests.data.picture_files import encoded, write_parquet

from fewstep.cli.configure import source_of
from fewstep.data.digits import Digits
from fewstep.metrics.results import read_result
from fewstep.yaml import read_yaml, to_yaml

COUNT = 120
DIGITS = Digits(split="all", limit=COUNT).dataset()
PIXELS, LABELS = DIGITS.images[:, 0].numpy(), DIGITS.labels.tolist()


def turned(image):
    return image.transpose(Image.Transpose.ROTATE_90)


def deep(image):
    return Image.fromarray(np.asarray(image).astype(np.uint16) * 257)


# How a picture is held, and the options with which it is written.
EXIF = Image.Exif()
EXIF[0x0112] = 6
HELD = {
    "grey": (lambda image: image, "png", {}),
    "turned": (turned, "png", {"exif": EXIF}),
    "colours": (lambda image: image.convert("RGB"), "png", {}),
    "palette": (lambda image: image.convert("P"), "png", {}),
    "transparency": (lambda image: image.convert("RGBA"), "png", {}),
    "grey and transparency": (lambda image: image.convert("LA"), "png", {}),
    "16 bits": (deep, "png", {}),
    "webp": (lambda image: image.convert("RGB"), "webp", {"lossless": True}),
}


def write(folder, held="grey", between="_"):
    """The digits as pictures; their classes stand in names, or are sub-folders."""
    change, end, options = HELD[held]
    for place, (pixels, label) in enumerate(zip(PIXELS, LABELS)):
        file = Path(folder) / f"{label}{between}{place:06d}.{end}"
        file.parent.mkdir(parents=True, exist_ok=True)
        change(Image.fromarray(pixels)).save(file, **options)


@pytest.fixture
def values(done):
    """The values of what lies there, and what was printed."""

    def call(*words):
        out = done("evaluate", *words, "--out", "result.json")
        return read_result(Path("result.json")).values, out

    return call


@pytest.fixture
def expected(values):
    np.savez("expected.npz", arr_0=PIXELS[..., None], arr_1=np.array(LABELS))
    found = values("expected.npz")[0]
    assert found["confirmed"] > 0.9
    return pytest.approx(found, rel=1e-4)


class TestAnyPicture:
    @pytest.mark.parametrize("held", HELD)
    def test_its_pixels_are_those_of_the_decoder(self, values, expected, held):
        write("images", held)
        assert values("images")[0] == expected

    @pytest.mark.parametrize("held", ["turned", "colours", "palette"])
    def test_as_the_reference_too(self, values, held):
        """Against itself everything is as good as it can be; the judge decides the channels."""
        write("images", held)
        found, _ = values("images", "--reference", "images")
        assert found["frechet"] < 20  # a fifth of the reference is held out
        write("grey")
        assert values("grey", "--reference", "images")[0] == pytest.approx(found, rel=1e-4)

    def test_grey_and_colours_together(self, values, expected):
        write("images")
        for file in sorted(Path("images").iterdir())[::3]:
            Image.open(file).convert("RGB").save(file)
        assert values("images")[0] == expected

    def test_colours_of_a_file_of_arrays(self, values, expected):
        colours = PIXELS[..., None].repeat(3, 3)
        np.savez("colours.npz", arr_0=colours, arr_1=np.array(LABELS))
        assert values("colours.npz")[0] == expected

    def test_metadata_that_cannot_be_read(self, values, expected):
        write("images")
        for file in sorted(Path("images").iterdir())[:2]:
            content = file.read_bytes()
            file.write_bytes(content[:33] + bytes(4) + b"pHYs" + bytes(4) + content[33:])
        found, out = values("images")
        assert found == expected
        assert "metadata: passed over in 2 of 120 pictures: images/0_000000.png, " in out


class TestAnyLayout:
    def test_class_folders(self, values, expected):
        write("images", between="/")
        found, out = values("images")
        assert found == expected
        assert "files: 120 below images" in out

    def test_hidden_files_and_others_beside(self, values, expected):
        write("images")
        for file in list(Path("images").iterdir()):
            file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7")
        Path("images/notes.txt").write_text("x")
        found, out = values("images")
        assert found == expected
        assert "notes.txt" in out

    def test_sets_of_training_and_test(self, values, expected):
        write("images/train", between="/")
        write("images/test", held="turned", between="/")
        assert values("images")[0] == expected

    def test_files_of_a_data_set(self, values, expected):
        write_idx(Path("idx/train-images-idx3-ubyte"), PIXELS)
        write_idx(Path("idx/train-labels-idx1-ubyte"), np.array(LABELS))
        assert values("idx")[0] == expected
        write_parquet(Path("x.parquet"), [encoded(one[None]) for one in PIXELS], label=LABELS)
        assert values("x.parquet")[0] == expected

    @pytest.mark.parametrize("numbers", [[3] * 40, list(range(10))], ids=["one class", "one each"])
    def test_names_as_sample_writes_them(self, values, numbers):
        """Data would see no classes in them."""
        Path("images").mkdir()
        for place, number in enumerate(numbers):
            image = Image.fromarray(PIXELS[LABELS.index(number)])
            image.save(f"images/{number}_{place:06d}.png")
        assert values("images", "--measures", "confirmed")[0] == {"confirmed": 1.0}

    @pytest.mark.parametrize("name", ["²_{}", "٣_{}", "{}_image", "x{}", "9" * 30 + "_{}"])
    def test_names_that_are_no_numbers(self, values, name):
        Path("images").mkdir()
        for place in range(30, 50):
            Image.fromarray(PIXELS[place]).save(f"images/{name.format(place)}.png")
        _, out = values("images")
        assert "left out: confirmed (the samples have no labels)" in out

    def test_named_classes_that_the_reference_has_not(self, values, refused):
        names = ("ant", "bee", "cat")
        for folder, classes in (("some", (0, 2)), ("all", (0, 1, 2)), ("same", (0, 1, 2))):
            for place in range(60):
                if LABELS[place] in classes:
                    file = Path(folder) / names[LABELS[place]] / f"{place}.png"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(PIXELS[place]).save(file)
        words = ("evaluate", "some", "--reference", "all")
        refused(
            2, *words, says=["some has the classes ant, cat", "the reference has ant, bee, cat"]
        )
        found, _ = values("same", "--reference", "all")
        assert found["diversity"] > 0.5


def test_a_measure_that_is_undefined_is_told(values):
    """Here diversity, to a reference of copies; the others are there."""
    write("images")
    for label in range(10):
        Path(f"copies/{label}").mkdir(parents=True)
        for copy in range(6):
            Image.fromarray(PIXELS[LABELS.index(label)]).save(f"copies/{label}/{copy}.png")
    found, out = values("images", "--reference", "copies", "--report", "page.html")
    assert list(found) == ["frechet", "kernel_distance", "confirmed"]
    assert out.splitlines()[2].split()[-1] == "–"
    reason = "undefined: diversity (the reference has no two unlike images of one class)"
    assert reason in out
    assert "no two unlike images of one class" in Path("page.html").read_text()
    write_again = ("images", "--reference", "copies", "--against", "result.json")
    assert values(*write_again)[0] == found


class TestRefused:
    @pytest.mark.parametrize("full", [MemoryError(), RuntimeError("can't allocate memory: x")])
    def test_no_memory_names_what_was_read(self, refused, monkeypatch, full):
        """No option of a training would help."""

        def short(images, channels):
            if len(images) == COUNT:
                raise full
            return images

        monkeypatch.setattr("fewstep.metrics.reading.in_channels", short)
        write("images")
        line = refused(5, "evaluate", "images", says=["images, 120 images of (1, 8, 8)", "memory"])
        assert "micro_batch" not in line

    def test_two_sizes(self, refused):
        Path("images").mkdir()
        Image.new("L", (8, 8)).save("images/0_a.png")
        Image.new("L", (9, 8)).save("images/1_b.png")
        refused(2, "evaluate", "images", says=["different sizes", "images/0_a.png", "1_b.png"])

    def test_another_size_than_the_reference(self, refused):
        """Said before a pixel is read."""
        Path("images").mkdir()
        Image.new("RGB", (5000, 4600)).save("images/0_a.png")
        line = refused(2, "evaluate", "images", says=["images", "(3, 4600, 5000)", "(1, 8, 8)"])
        assert "its size" in line

    @pytest.mark.parametrize("side", [12000, 30000])
    def test_too_many_pixels(self, refused, side):
        Path("images").mkdir()
        content = bytearray(encoded(PIXELS[:1]))
        content[16:24] = side.to_bytes(4, "big") * 2
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
        Path("images/0_a.png").write_bytes(content)
        refused(2, "evaluate", "images", says=["0_a.png", "pixels"])

    def test_no_images(self, refused):
        Path("images").mkdir()
        Path("images/notes.txt").write_text("x")
        refused(2, "evaluate", "images", says=["no data in images", "notes.txt"])
        Path("x.csv").write_text("caption\na cat\n")
        refused(2, "evaluate", "x.csv", says=["x.csv holds no images, only caption"])


class TestReference:
    def test_of_a_run_its_own_data_whole(self, done, runs):
        """Also where the training took a part of them, and mirrored them."""
        shutil.copytree(runs / "cd", runs / "of_its_own")
        done("sample", "digits_teacher", "--num", "60", "--steps", "2", "--out", "mine.npz")
        plain = read_yaml(runs / "of_its_own" / "run.yaml")
        plain["data"] = {"kind": "npz", "path": "mine.npz", "limit": 10, "flip": True}
        (runs / "of_its_own" / "run.yaml").write_bytes(to_yaml(plain).encode())
        words = ("--num", "20", "--measures", "frechet", "--out", "x.json")
        done("evaluate", "runs/of_its_own", *words)
        whole = source_of("mine.npz").dataset()
        assert read_result(Path("x.json")).protocol.reference == whole.fingerprint()
        done("evaluate", "runs/of_its_own", "split=all", *words)
        assert read_result(Path("x.json")).protocol.reference_images == 60
        done("evaluate", "runs/of_its_own", "--reference", "digits", *words)
        digits = source_of("digits").dataset().fingerprint()
        assert read_result(Path("x.json")).protocol.reference == digits

    def test_pictures_of_other_sizes_become_those_of_the_model(self, done, runs):
        folder = Path("mixed")
        folder.mkdir()
        generator = np.random.default_rng(0)
        for i in range(30):
            pixels = generator.integers(0, 256, (9 + i % 3, 12), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
        words = ("--reference", "mixed", "--num", "20", "--measures", "frechet", "--out", "x.json")
        out = done("evaluate", "runs/cd", *words)
        note = "reference pictures: their middle squares at 8×8, which is what the model makes"
        assert note in out.splitlines()
        made = source_of("mixed", ["size=8"]).dataset().fingerprint()
        assert read_result(Path("x.json")).protocol.reference == made
        assert note not in done("evaluate", "runs/cd", "size=8", *words)

    def test_a_size_that_is_asked_for_stays(self, refused, done, runs):
        done("sample", "runs/cd", "--num", "8", "--out", "pictures")
        words = ("size=6", "--reference", "pictures", "--num", "8")
        refused(2, "evaluate", "runs/cd", *words, says="makes images of shape (1, 8, 8)")
