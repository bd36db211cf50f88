"""`fewstep sample`: images, options, and the places that they are written to."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.cli.conftest import arrays

from fewstep import load
from fewstep.diffusion.samplers import Ode, Renoise
from fewstep.diffusion.solvers import Euler
from fewstep.diffusion.times import Explicit, Karras

SAMPLE = ("sample", "runs/cd", "--out", "x.png")


class TestSample:
    def test_an_archive(self, done, runs):
        out = done("sample", "runs/cd", "--out", "x.npz", "--num", "13", "--seed", "4")
        found = arrays("x.npz")
        assert sorted(found) == ["arr_0", "arr_1"]
        assert (found["arr_0"].shape, found["arr_0"].dtype) == ((13, 8, 8, 1), np.uint8)
        assert found["arr_1"].tolist() == [i % 10 for i in range(13)]
        images = load("runs/cd").generate(num=13, seed=4)
        assert np.array_equal(found["arr_0"][..., 0], (images[:, 0] * 255).round().byte().numpy())
        assert "x.npz: 13 images, 2 steps, 2 evaluations each" in out

    def test_all_formats_hold_the_same_images(self, done, runs):
        for out in ("x.npz", "x.png", "x"):
            done("sample", "runs/cd", "--out", out, "--num", "20")
        found = arrays("x.npz")
        files = sorted(Path("x").iterdir(), key=lambda path: path.stem.split("_")[1])
        assert [f.name for f in files] == [f"{i % 10}_{i:06d}.png" for i in range(20)]
        grid = np.asarray(Image.open("x.png"))
        zoom = grid.shape[1] // 89  # ten images of 8 and nine lines between them
        grid = grid[::zoom, ::zoom]
        assert grid.shape == (17, 89)
        for i, file in enumerate(files):
            picture = found["arr_0"][i, :, :, 0]
            assert np.array_equal(np.asarray(Image.open(file)), picture)
            y, x = i // 10 * 9, i % 10 * 9
            assert np.array_equal(grid[y : y + 8, x : x + 8], picture)

    def test_the_same_command_gives_the_same_bytes(self, done, runs):
        for name in ("a", "b"):
            for end in (".npz", ".png"):
                done("sample", "runs/cd", "--out", name + end, "--seed", "7")
        for end in (".npz", ".png"):
            assert Path("a" + end).read_bytes() == Path("b" + end).read_bytes()

    def test_labels(self, done, runs):
        done("sample", "runs/cd", "--out", "x.npz", "--labels", "3,3,5")
        assert arrays("x.npz")["arr_1"].tolist() == [3, 3, 5]
        expected = load("runs/cd").generate([3, 3, 5])
        assert np.array_equal(
            arrays("x.npz")["arr_0"][..., 0], (expected[:, 0] * 255).round().byte().numpy()
        )
        done("sample", "runs/cd", "--out", "x.npz", "--labels", "3,5", "--num", "5")
        assert arrays("x.npz")["arr_1"].tolist() == [3, 5, 3, 5, 3]
        done("sample", "runs/tiny", "--out", "y.npz", "--labels", "3,none", "--num", "3")
        assert arrays("y.npz")["arr_1"].tolist() == [3, -1, 3]
        done("sample", "runs/tiny", "--out", "none", "--labels", "none", "--num", "2")
        assert sorted(path.name for path in Path("none").iterdir()) == ["000000.png", "000001.png"]
        done("sample", "runs/cd", "--out", "x.npz", "--labels", "3,5", "--num", "1")
        assert arrays("x.npz")["arr_1"].tolist() == [3]

    @pytest.mark.parametrize(
        ("model", "options", "sampler", "evaluations"),
        [
            ("cd", (), None, 2),
            ("cd", ("--steps", "1"), Renoise(1, Karras(20.0, "t_min")), 1),
            ("cd", ("--times", "80,2.5,0.8"), Renoise(3, Explicit(((2.5, 0.8),))), 3),
            ("cd", ("--times", "80"), Renoise(1, Karras(20.0, "t_min")), 1),
            ("cd", ("--sampler", "euler"), Ode(2, solver=Euler()), 2),
            ("tiny", (), None, 7),
            ("tiny", ("--sampler", "euler", "--steps", "4"), Ode(4, solver=Euler()), 4),
            ("tiny", ("--sampler", "heun", "--steps", "4"), Ode(4), 7),
            ("tiny", ("--sampler", "dpmpp2m", "--steps", "4"), None, 4),
            (
                "tiny",
                ("--times", "80,1", "--sampler", "euler"),
                Ode(2, Explicit(((1.0,),), "t_data"), Euler()),
                2,
            ),
            ("tiny", ("--steps", "3", "--guidance", "2"), None, 10),
            ("tiny", ("--steps", "3", "--guidance", "2", "--fading", "1,10"), None, 10),
            ("tiny", ("--steps", "3", "--guidance", "1"), None, 5),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_steps_and_samplers(self, done, runs, rows, model, options, sampler, evaluations):
        """What is printed is what the network did, and the images are the sampler's."""
        out = done("sample", f"runs/{model}", "--out", "x.npz", "--num", "10", *options)
        many = "" if evaluations == 1 else "s"
        assert f"{evaluations} evaluation{many} each" in out
        assert sum(rows) == 10 * evaluations
        if sampler is not None:
            expected = load(f"runs/{model}").generate(num=10, sampler=sampler)
            assert np.array_equal(
                arrays("x.npz")["arr_0"][..., 0], (expected[:, 0] * 255).round().byte().numpy()
            )

    @pytest.mark.filterwarnings("default")
    def test_guidance_outside_the_range_is_said_in_one_line(self, fewstep, runs):
        code, _, err = fewstep(
            "sample", "runs/tiny", "--out", "x.png", "--steps", "2", "--guidance", "9"
        )
        assert (code, err) == (
            0,
            "warning: guidance 9 is outside 1 to 8, which this model was made for\n",
        )

    def test_averages(self, done, runs):
        done("sample", "runs/tiny", "--out", "a.npz", "--steps", "2")
        done("sample", "runs/tiny", "--out", "b.npz", "--steps", "2", "--ema", "0.9995")
        expected = load("runs/tiny", ema="0.9995").generate(num=16, steps=2)
        assert np.array_equal(
            arrays("b.npz")["arr_0"][..., 0], (expected[:, 0] * 255).round().byte().numpy()
        )
        assert not np.array_equal(arrays("a.npz")["arr_0"], arrays("b.npz")["arr_0"])

    def test_the_first_average_has_its_name_too(self, done, runs):
        """The student is the average of the first decay: who asks for that decay gets it."""
        done("sample", "runs/tiny", "--out", "a.npz", "--steps", "2")
        done("sample", "runs/tiny", "--out", "b.npz", "--steps", "2", "--ema", "0.5")
        assert np.array_equal(arrays("a.npz")["arr_0"], arrays("b.npz")["arr_0"])

    def test_arithmetic_and_batches(self, done, runs):
        done("sample", "runs/cd", "--out", "a.npz", "--num", "20")
        done(
            "sample", "runs/cd", "--out", "b.npz", "--num", "20", "--batch", "3", "--device", "cpu"
        )
        done("sample", "runs/cd", "--out", "c.npz", "--num", "20", "--dtype", "bf16")
        first, parts, half = (arrays(f"{name}.npz")["arr_0"].astype(int) for name in "abc")
        assert np.abs(parts - first).max() <= 1
        assert np.abs(half - first).mean() < 4

    @pytest.mark.parametrize("out", ["x.npz", "x.png", "x"])
    def test_numbers_that_are_not_finite_are_an_error_and_nothing_is_written(
        self, refused, runs, out
    ):
        loud = load("runs/tiny")
        with torch.no_grad():
            loud.denoiser.network.input_blocks[0][0].weight *= 1e7
        loud.save(runs / "half")
        half = ("sample", "runs/half", "--num", "4", "--out", out)
        refused(2, *half, "--dtype", "fp16", says=("4 of the first 4 images", "--dtype bf16"))
        with torch.no_grad():
            loud.denoiser.network.out[-1].weight *= 1e38
        loud.save(runs / "loud")
        refused(2, "sample", "runs/loud", "--num", "4", "--out", out, says="another sampler")
        refused(2, "evaluate", "runs/loud", "--reference", "digits", "--num", "9", says="9 of")
        assert not Path(out).exists()

    def test_a_new_folder_inside_new_folders(self, done, runs):
        done("sample", "runs/cd", "--out", "a/b/c", "--num", "2")
        assert len(list(Path("a/b/c").iterdir())) == 2
        Path("empty").mkdir()
        done("sample", "runs/cd", "--out", "empty", "--num", "2")
        assert len(list(Path("empty").iterdir())) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--labels", "3,12"), ["0 … 9", "12"]),
        (("--labels", "3,x"), ["--labels", "'3,x'", "whole numbers"]),
        (("--labels", ""), "--labels"),
        (("--times", "10,1"), ["times", "80", "10"]),
        (("--times", "nan"), ["times", "80"]),
        (("--times", "80,1,2"), "decrease"),
        (("--times", "80,0.0001"), ["0.002", "80"]),
        (("--times", "80,x"), ["--times", "numbers"]),
        (("--times", "80,0.8", "--steps", "3"), ["times", "steps"]),
        (("--sampler", "hoin"), ["hoin", "heun"]),
        (("--dtype", "fp23"), ["fp23", "fp32"]),
        (("--device", "quark"), ["quark"]),
        (("--guidance", "3"), ["guidance", "no unconditional side"]),
        (("--guidance", "nan"), "guidance"),
        (("--fading", "1"), "--fading '1': expected two times"),
        (("--fading", "1,2"), "fading needs guidance"),
        (("--ema", "0.5"), ["0.5", "only its own"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_of_sample(refused, runs, asleep, words, says):
    refused(2, *SAMPLE, *words, says=says)
    assert not Path("x.png").exists()


def test_guidance_that_is_no_number(refused, runs, asleep):
    refused(2, "sample", "runs/tiny", "--out", "x.png", "--guidance", "nan", says="guidance")


class TestOutputs:
    @pytest.mark.parametrize("out", ["file/x.png", "file/x.npz", "file/x", "file/a/b/x.png"])
    def test_below_a_file(self, refused, runs, asleep, out):
        Path("file").write_text("mine")
        line = refused(2, "sample", "runs/cd", "--out", out, says="file")
        assert "File exists" not in line  # true, and no help
        assert Path("file").read_text() == "mine"

    @pytest.mark.parametrize("out", ["x.jpg", "mine", "full", "folder.png", "folder.npz"])
    def test_places_that_are_taken_or_unknown(self, refused, runs, asleep, out):
        Path("mine").write_text("mine")
        Path("full").mkdir()
        Path("full/mine").write_text("mine")
        Path("folder.png").mkdir()
        Path("folder.npz").mkdir()
        line = refused(2, "sample", "runs/cd", "--out", out, says=out)
        assert ".tmp-" not in line
        assert Path("mine").read_text() == Path("full/mine").read_text() == "mine"

    def test_a_full_disk(self, refused, runs, tmp_path, monkeypatch):
        def full(path):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("fewstep.files.sync", full)
        for out in ("x.png", "x.npz", "x"):
            refused(2, "sample", "runs/cd", "--out", out, says="No space left")
            assert [path.name for path in tmp_path.iterdir()] == ["runs"]

    def test_an_export_takes_no_folder_of_somebody_else(self, refused, runs):
        """An export replaces what is in its folder, so it must be sure that it was an export."""
        Path("thesis").mkdir()
        Path("thesis/chapter.tex").write_text("mine")
        refused(2, "export", "runs/cd", "--to", "diffusers", "--out", "thesis", says="thesis")
        assert Path("thesis/chapter.tex").read_text() == "mine"
        Path("file").write_text("mine")
        refused(2, "export", "runs/cd", "--to", "diffusers", "--out", "file", says="file")
        assert Path("file").read_text() == "mine"

    def test_an_export_keeps_the_umask(self, done, runs):
        before = os.umask(0o077)
        try:
            done("export", "runs/cd", "--to", "diffusers", "--out", "out")
        finally:
            os.umask(before)
        files = [path for path in Path("out").rglob("*") if path.is_file()]
        assert len(files) >= 4
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}

    def test_an_export_of_half_the_size(self, done, runs):
        done("export", "runs/cd", "--to", "diffusers", "--dtype", "fp16", "--out", "out")
        tensors = load_file("out/unet/diffusion_pytorch_model.safetensors")
        assert {one.dtype for one in tensors.values()} == {torch.float16}

    def test_an_unknown_export(self, refused, runs):
        refused(2, "export", "runs/cd", "--to", "onxx", says=["onxx", "diffusers"])
        refused(2, "export", "runs/cd", "--to", "diffusers", "--dtype", "fp61", says="fp16")
