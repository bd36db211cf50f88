"""`fewstep compare`: rows are models, columns are prompts or labels, all of the same noise."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep import load
from fewstep.images.sheet import CELL, GAP, SIDE

TOYS = ("--plugin", str(Path(__file__).parent.parent / "toys.py"))


def cells(path, columns, rows, side=8):
    """The images of a sheet, (rows, columns, side, side, 3)."""
    picture = np.asarray(Image.open(path))
    zoom, step = CELL // side, CELL + GAP
    head = picture.shape[0] - rows * step
    assert picture.shape[1] == SIDE + columns * step
    found = np.zeros((rows, columns, side, side, 3), np.uint8)
    for row in range(rows):
        for column in range(columns):
            y, x = head + row * step, SIDE + column * step
            found[row, column] = picture[y : y + CELL : zoom, x : x + CELL : zoom]
    return found, picture, head


def test_a_row_for_each_model(done, runs):
    out = done(
        *("compare", "runs/tiny,steps=3,guidance=2", "runs/cd,name=few steps,steps=1"),
        *("--labels", "3,1,5", "--seed", "4", "--out", "x.png"),
    )
    found, picture, head = cells("x.png", 3, 2)
    for row, images in enumerate(
        (
            load("runs/tiny").generate([3, 1, 5], steps=3, guidance=2.0, seed=4),
            load("runs/cd").generate([3, 1, 5], steps=1, seed=4),
        )
    ):
        wanted = (images[:, 0] * 255).round().byte().numpy()
        assert np.array_equal(found[row, ..., 0], wanted)
        assert np.array_equal(found[row, ..., 0], found[row, ..., 2])
    assert (picture[:head, SIDE:] < 100).any(), "words over the columns"
    assert (picture[head : head + CELL, :SIDE] < 100).any(), "words at the rows"
    lines = [line.split() for line in out.splitlines()]
    assert lines[2][:1] == ["tiny"]
    assert lines[2][1] == "3"
    tiny = load("runs/tiny")
    assert int(lines[2][2]) == tiny.evaluations(tiny.sampler.with_steps(3), 2.0)
    assert lines[3][:4] == ["few", "steps", "1", "1"]
    assert out.splitlines()[-1] == "x.png: 2 rows of 3 images, seed 4"


def test_eight_columns_where_nobody_says(done, runs):
    done("compare", "runs/cd", "--out", "x.png")
    found, *_ = cells("x.png", 8, 1)
    wanted = (load("runs/cd").generate(num=8)[:, 0] * 255).round().byte().numpy()
    assert np.array_equal(found[0, ..., 0], wanted)


def test_the_same_command_gives_the_same_bytes(done, runs):
    for name in ("a.png", "b.png"):
        done("compare", "runs/cd,steps=1", "runs/cd,steps=2", "--num", "3", "--out", name)
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("runs/cd,step=2",), ["runs/cd,step=2", "steps"]),
        (("runs/cd,steps=two",), ["steps=two"]),
        (("runs/cd,guidance=x",), ["guidance=x"]),
        (("runs/cd,steps=0",), ["runs/cd", "at least 1"]),
        (("runs/cd,sampler=hein",), ["hein", "heun"]),
        (("runs/none",), ["runs/none"]),
        (("runs/cd", "--prompt", "a cat"), ["runs/cd", "captions"]),
        (("runs/cd", "--labels", "x"), ["--labels"]),
        (("runs/cd", "--prompt", "a", "--prompts", "x.txt"), ["--prompts"]),
        (("runs/cd", "--prompts", "nothing.txt"), ["nothing.txt"]),
        (("runs/cd", "--out", "x.npz"), ["x.npz"]),
    ],
)
def test_what_is_refused(refused, runs, asleep, words, says):
    refused(2, "compare", "--out", "x.png", *words, says=says)
    assert not Path("x.png").exists()


@pytest.fixture
def writer(done):
    """A run of a model of captions, in latents."""
    done(
        *("train", "digits_teacher", "name=toy", *TOYS, "data=captioned", "data.limit=16"),
        *("teacher.network=toy_text_net", "teacher.codec=toy_latents", "trainer.steps=1"),
        *("teacher.conditioner=toy_words", "trainer.batch=4", "trainer.health_every=0"),
    )
    Path("prompts.txt").write_text("\n".join(["a three", "a five", "a nine"]))


def test_prompts_of_a_file(done, refused, writer):
    done("sample", "runs/toy", "--prompts", "prompts.txt", "--steps", "2", "--out", "x.npz", *TOYS)
    with np.load("x.npz") as found:
        images = found["arr_0"]
    words = ("--steps", "2", "--prompt", "a three", "--prompt", "a five", "--prompt", "a nine")
    done("sample", "runs/toy", *words, "--out", "y.npz", *TOYS)
    with np.load("y.npz") as found:
        assert np.array_equal(images, found["arr_0"])
    done("compare", "runs/toy,steps=2", "--prompts", "prompts.txt", "--out", "x.png", *TOYS)
    found, *_ = cells("x.png", 3, 1)
    assert np.array_equal(found[0, ..., 0], images[..., 0])
    words = ("--prompts", "prompts.txt", "--num", "5", "--steps", "2", "--out", "z.npz", *TOYS)
    done("sample", "runs/toy", *words)
    with np.load("z.npz") as found:
        assert len(found["arr_0"]) == 5
        assert np.array_equal(found["arr_0"][:3], images)
