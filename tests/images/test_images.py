"""Images in and out of files: what was written is read again."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.cli.configure import source_of
from fewstep.errors import NotFiniteError
from fewstep.images.files import check_place, write_images
from fewstep.images.grid import grid_image, write_grid


def images_of(n, channels=1, height=4, width=5):
    """Images whose values survive 8 bits."""
    generator = torch.Generator().manual_seed(0)
    size = (n, channels, height, width)
    return torch.randint(256, size, generator=generator, dtype=torch.uint8).float() / 255


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["x.npz", "x"])
@pytest.mark.parametrize("labelled", [True, False])
def test_there_and_back(tmp_path, channels, name, labelled):
    images = images_of(12, channels)
    labels = torch.arange(12) % 10 if labelled else None
    write_images(tmp_path / name, images, labels)
    dataset = source_of(str(tmp_path / name), ["split=all"]).dataset()
    if name == "x" and labelled:  # files are read in the order of their names: by class
        order = torch.argsort(labels, stable=True)
        images, labels = images[order], labels[order]
    assert torch.equal(dataset.floats(), images)
    found = dataset.labels
    assert (found is None) if labels is None else torch.equal(found, labels)


@pytest.mark.parametrize("name", ["x.npz", "x"])
def test_captions_there_and_back(tmp_path, name):
    """Also such with commas, quotes and line breaks, other scripts, and none."""
    images = images_of(5, 3)
    captions = ["a cat, black", 'the "big" one', "two\nlines", "ein Kätzchen 小猫", ""]
    write_images(tmp_path / name, images, None, captions)
    dataset = source_of(str(tmp_path / name), ["split=all"]).dataset()
    assert torch.equal(dataset.floats(), images)
    assert dataset.rows(torch.arange(5), ["caption"])["caption"] == captions
    assert dataset.labels is None


def test_captions_of_others_in_an_archive(tmp_path):
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "x.npz", arr_0=pixels, captions=np.array(["a", "b", "c"]))
    with pytest.raises(ValueError, match="has 3 captions for 2 images"):
        source_of(str(tmp_path / "x.npz"), []).dataset()
    for other in (np.array([1, 2]), np.array(["a", None], object), np.array([["a"], ["b"]])):
        np.savez(tmp_path / "x.npz", arr_0=pixels, captions=other)
        dataset = source_of(str(tmp_path / "x.npz"), ["split=all"]).dataset()
        assert list(dataset.columns) == ["image"]
        assert dataset.notes["arrays not used"] == "captions"


def test_a_grid_has_a_grey_line_between_images():
    images = images_of(5)
    sheet = np.asarray(grid_image(images, 3))
    assert sheet.shape == (2 * 5 - 1, 3 * 6 - 1)
    assert (sheet[4] == 128).all()
    assert (sheet[:, 5] == 128).all()
    fourth = (images[3, 0] * 255).round().byte().numpy()
    assert np.array_equal(sheet[5:9, :5], fourth)
    assert np.array_equal(np.asarray(grid_image(images, 3, zoom=2))[::2, ::2], sheet)


@pytest.mark.parametrize(("n", "columns"), [(20, 10), (9, 3), (7, 3)])
def test_rows_of_a_written_grid(tmp_path, n, columns):
    write_grid(tmp_path / "x.png", images_of(n, width=200))
    with Image.open(tmp_path / "x.png") as image:
        assert image.width == columns * 201 - 1 or image.width % (columns * 201 - 1) == 0


def test_places(tmp_path):
    (tmp_path / "file").write_text("x")
    for free in ("x.npz", "x.png", "new", "a/b/new"):
        check_place(tmp_path / free)
    for taken in ("file", "file/x.png", "x.jpg"):
        with pytest.raises(ValueError, match=Path(taken).parts[0]):
            check_place(tmp_path / taken)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder that nobody can write to")
@pytest.mark.parametrize("name", ["x.png", "new", "a/b/x.npz"])
def test_a_place_that_cannot_be_written_is_known_before_the_work(name):
    with pytest.raises(ValueError, match=f"/proc/{name} cannot be written: /proc: "):
        check_place(Path("/proc") / name)


@pytest.mark.parametrize("spoilt", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["x.npz", "x.png", "x"])
def test_numbers_that_are_not_finite_are_written_nowhere(tmp_path, name, spoilt):
    images = torch.rand(12, 1, 4, 4)
    images[7, 0, 1, 1] = spoilt
    with pytest.raises(NotFiniteError, match="1 of 12 images"):
        write_images(tmp_path / name, images, None)
    with pytest.raises(NotFiniteError, match="1 of 12 images"):
        grid_image(images, 4)
    assert list(tmp_path.iterdir()) == []
