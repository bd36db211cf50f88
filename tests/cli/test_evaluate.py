"""`fewstep evaluate`: what it measures, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.idx_files import write_pair

from fewstep import load
from fewstep.data.digits import Digits
from fewstep.diffusion.samplers import Ode
from fewstep.diffusion.solvers import Dpmpp2m, Euler, Heun
from fewstep.metrics.evaluation import row
from fewstep.metrics.protocol import Reference, find_judge


class TestEvaluate:
    def test_a_model(self, done, runs):
        out = done(
            "evaluate",
            "runs/cd",
            "--num",
            "40",
            "--steps",
            "1",
            "--seed",
            "3",
            "--out",
            "result.json",
        )
        result = json.loads(Path("result.json").read_text())
        assert (result["model"], result["steps"], result["evaluations"]) == ("cd", 1, 1)
        assert (result["protocol"]["num"], result["protocol"]["seed"]) == (40, 3)
        assert result["protocol"]["reference"] == Digits().dataset().fingerprint()
        assert f"{result['frechet']:.2f}" in out
        assert f"{result['confirmed']:.1%}" in out
        assert "extractor classifier" in out

    def test_guidance(self, done, refused, runs):
        """What is measured is what `sample --guidance` gives."""
        done(
            "evaluate",
            "runs/tiny",
            "--num",
            "40",
            "--steps",
            "2",
            "--guidance",
            "3",
            "--out",
            "a.json",
        )
        done(
            "sample",
            "runs/tiny",
            "--num",
            "40",
            "--steps",
            "2",
            "--guidance",
            "3",
            "--out",
            "x.npz",
        )
        done("evaluate", "x.npz", "--out", "b.json")
        guided, images = (json.loads(Path(f"{name}.json").read_text()) for name in "ab")
        assert guided["frechet"] == pytest.approx(images["frechet"], rel=1e-4)
        assert guided["protocol"]["guidance"] == 3.0
        refused(2, "evaluate", "x.npz", "--guidance", "3", says=["x.npz", "--guidance"])
        refused(2, "evaluate", "x.npz", "--steps", "3", says=["x.npz", "--steps"])

    def test_images_of_a_file_and_a_folder_measure_as_the_model_does(self, done, runs):
        done("evaluate", "runs/cd", "--num", "40", "--out", "a.json")
        done("sample", "runs/cd", "--num", "40", "--out", "x.npz")
        done("sample", "runs/cd", "--num", "40", "--out", "x")
        done("evaluate", "x.npz", "--out", "b.json")
        done("evaluate", "x", "--out", "c.json")
        first, *others = (json.loads(Path(f"{name}.json").read_text()) for name in "abc")
        for other in others:
            for key in ("frechet", "confirmed", "diversity"):
                assert other[key] == pytest.approx(first[key], rel=1e-4)
            assert other["steps"] == 0

    def test_the_best_solver_at_a_cost(self, done, refused, runs):
        """What is written is the best of the three; each is what its own sampler gives."""
        done("evaluate", "runs/tiny", "--num", "40", "--evaluations", "5", "--out", "best.json")
        best = json.loads(Path("best.json").read_text())
        model, reference = (
            load("runs/tiny"),
            Reference.of(Digits().dataset(), find_judge(None, (1, 8, 8))),
        )
        tried = [Ode(5, solver=Euler()), Ode(3, solver=Heun()), Ode(5, solver=Dpmpp2m())]
        rows = [row("tiny", model, sampler, reference, 40, 0, 5) for sampler in tried]
        least = min(rows, key=lambda r: r["frechet"])
        assert best["evaluations"] == 5
        assert {k: best[k] for k in ("solver", "steps", "frechet")} == {
            k: least[k] for k in ("solver", "steps", "frechet")
        }
        refused(
            2,
            "evaluate",
            "runs/tiny",
            "--steps",
            "2",
            "--evaluations",
            "2",
            says=["--steps", "--evaluations"],
        )
        refused(2, "evaluate", "runs/cd", "--evaluations", "2", says="--steps")

    def test_against_an_earlier_result(self, done, fewstep, runs):
        done("evaluate", "runs/cd", "--num", "40", "--out", "a.json")
        out = done("evaluate", "runs/cd", "--num", "40", "--steps", "1", "--against", "a.json")
        earlier = json.loads(Path("a.json").read_text())
        assert f"{earlier['frechet']:.2f}" in out
        assert len([line for line in out.splitlines() if line.startswith("cd ")]) == 2
        for words, key in (
            (("--num", "41"), "num: 40 against 41"),
            (("--reference", "digits", "--num", "42"), "num"),
        ):
            ended = fewstep("evaluate", "runs/cd", *words, "--against", "a.json")
            assert ended.code == 2
            assert "cannot be compared" in ended.err
            assert key in ended.err

    def test_another_reference_is_not_compared(self, fewstep, done, runs, tmp_path):
        write_pair(tmp_path / "data", 60)
        done("evaluate", "runs/cd", "--num", "40", "--out", "a.json")
        ended = fewstep(
            "evaluate", "runs/cd", "--num", "40", "--reference", "data", "--against", "a.json"
        )
        assert ended.code == 2
        assert "reference:" in ended.err

    def test_without_labels(self, done, runs):
        images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
        np.savez("x.npz", arr_0=images)
        done("evaluate", "x.npz", "--out", "a.json")
        result = json.loads(Path("a.json").read_text())
        assert result["confirmed"] is None
        assert result["diversity"] is None


def save_npz(name="x.npz", **arrays):
    generator = np.random.default_rng(0)
    first = {
        "arr_0": generator.integers(0, 256, (20, 8, 8, 1), dtype=np.uint8),
        "arr_1": np.arange(20) % 10,
    }
    np.savez(name, **{key: value for key, value in (first | arrays).items() if value is not None})
    return first["arr_0"]


class TestRefused:
    @pytest.mark.parametrize(
        ("arrays", "says"),
        [
            ({"arr_1": np.arange(7)}, ["7 labels", "20 images"]),
            ({"arr_1": np.arange(20) % 10 + 5}, ["out of range", "0 … 9"]),
            ({"arr_1": np.arange(20)[:, None] % 10}, "arr_1"),
            ({"arr_1": np.array(["a"] * 20)}, "arr_1"),
            ({"arr_0": None}, "arr_0"),
            ({"arr_0": np.zeros((20, 4, 8, 1), np.uint8)}, ["(1, 8, 8)", "(1, 4, 8)"]),
            ({"arr_0": np.zeros((20, 8, 8), np.uint8)}, ["arr_0", "(20, 8, 8)"]),
            ({"arr_0": np.zeros((20, 8, 8, 1))}, ["arr_0", "float64"]),
            (
                {"arr_0": np.zeros((1, 8, 8, 1), np.uint8), "arr_1": None},
                ["at least 2 images", "1"],
            ),
        ],
        ids=["counts", "range", "2-d", "text", "none", "shape", "3-d", "floats", "one"],
    )
    def test_arrays_that_do_not_fit(self, refused, arrays, says):
        save_npz(**arrays)
        refused(2, "evaluate", "x.npz", says=says)

    @pytest.mark.parametrize("damage", ["cut", "flip", "text", "empty", "objects", "gone"])
    def test_damaged_archives(self, refused, damage):
        save_npz()
        content = Path("x.npz").read_bytes()
        if damage == "flip":
            content = content[:200] + bytes([content[200] ^ 1]) + content[201:]
        Path("x.npz").write_bytes(
            {"cut": content[:300], "text": b"hello", "empty": b""}.get(damage, content)
        )
        if damage == "objects":
            np.savez("x.npz", arr_0=np.array([{}], dtype=object))
        if damage == "gone":
            Path("x.npz").unlink()
        line = refused(2, "evaluate", "x.npz", says="x.npz")
        assert "allow_pickle" not in line  # numpy's advice to its own users is wrong for ours

    def test_a_folder_with_two_sizes(self, refused):
        Path("images").mkdir()
        Image.new("L", (8, 8)).save("images/0_a.png")
        Image.new("L", (9, 8)).save("images/1_b.png")
        refused(2, "evaluate", "images", says=["mixed sizes", "images", "0_a.png", "1_b.png"])

    def test_colour_and_grey(self, refused):
        Path("images").mkdir()
        Image.new("L", (8, 8)).save("images/0_a.png")
        Image.new("RGB", (8, 8)).save("images/1_b.png")
        refused(2, "evaluate", "images", says=["mixed", "0_a.png", "1_b.png"])

    def test_a_folder_without_images(self, refused):
        Path("images").mkdir()
        Path("images/notes.txt").write_text("x")
        refused(2, "evaluate", "images", says=["images", "no images"])

    @pytest.mark.parametrize("keep", [0, 20, 60])
    def test_a_damaged_image_is_named(self, refused, keep):
        Path("images").mkdir()
        picture = Image.fromarray(save_npz()[0, :, :, 0])
        picture.save("images/0_a.png")
        picture.save("images/1_b.png")
        Path("images/1_b.png").write_bytes(Path("images/1_b.png").read_bytes()[:keep])
        refused(2, "evaluate", "images", says="1_b.png")

    def test_labels_out_of_range_in_file_names(self, refused):
        Path("images").mkdir()
        for i, picture in enumerate(save_npz()):
            Image.fromarray(picture[:, :, 0]).save(f"images/{i % 10 + 5}_{i}.png")
        refused(2, "evaluate", "images", says=["out of range", "0 … 9"])

    def test_classifiers_that_do_not_fit(self, refused, runs):
        save_npz()
        refused(
            2, "evaluate", "x.npz", "--features", "runs/tiny", says=["runs/tiny", "no classifier"]
        )
        refused(
            2, "evaluate", "x.npz", "--features", "nobody", says=["nobody", "digits_classifier"]
        )
        write_pair(Path("data"), 30, size=28)
        refused(2, "evaluate", "x.npz", "--reference", "data", says=["(1, 28, 28)", "--features"])

    @pytest.mark.parametrize("text", ["{", "[]", "{}", '{"protocol": 3}', '{"protocol": {}}', None])
    def test_results_that_are_none(self, refused, text):
        save_npz()
        if text is not None:
            Path("earlier.json").write_text(text)
        refused(2, "evaluate", "x.npz", "--against", "earlier.json", says="earlier.json")

    def test_results_that_cannot_be_written(self, refused, runs, asleep):
        Path("file").write_text("mine")
        line = refused(2, "evaluate", "runs/cd", "--out", "file/x.json", says="file")
        assert "File exists" not in line
