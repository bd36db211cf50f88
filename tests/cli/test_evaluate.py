"""`fewstep evaluate`: what is printed, written, reported and compared is what was measured; and
what is refused.
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.idx_files import write_pair

from fewstep import load, plugins
from fewstep.data.digits import Digits
from fewstep.data.shapes import Shapes
from fewstep.diffusion.samplers import Ode
from fewstep.diffusion.solvers import Dpmpp2m, Euler, Heun
from fewstep.metrics.evaluation import Evaluation
from fewstep.metrics.results import best_of, read_result
from fewstep.models.classifier import find_classifier

FILE = Path(__file__).parent / "lab_measure.py"
PLUGIN = ("--plugin", str(FILE))


@pytest.fixture
def measured(done):
    """`evaluate … --num 40` with its result."""

    def call(*words):
        out = done("evaluate", *words, "--num", "40", "--out", "result.json")
        return read_result(Path("result.json")), out

    return call


def test_a_model(measured, runs):
    result, out = measured("runs/cd", "--steps", "1", "--seed", "3")
    assert (result.model, result.steps, result.evaluations) == ("cd", 1, 1)
    assert (result.protocol.num, result.protocol.seed) == (40, 3)
    assert (result.protocol.reference, result.protocol.split) == (
        Digits().dataset().fingerprint(),
        "train",
    )
    assert list(result.values) == ["frechet", "kernel_distance", "confirmed", "diversity"]
    head, _, row, *protocol = out.splitlines()
    for text in ("Fréchet distance ↓", "confirmed ↑", "diversity ↑"):
        assert text in head
    assert f"{result.values['frechet']:.2f}" in row
    assert f"{result.values['confirmed']:.1%}" in row
    assert f"features: {result.protocol.features}" in protocol
    assert "samples: 40" in protocol


def test_guidance(measured, done, refused, runs):
    """What is measured is what `sample --guidance` gives."""
    guided, _ = measured("runs/tiny", "--steps", "2", "--guidance", "3")
    words = ("--num", "40", "--steps", "2", "--guidance", "3", "--out", "x.npz")
    done("sample", "runs/tiny", *words)
    images, _ = measured("x.npz")
    assert guided.values["frechet"] == pytest.approx(images.values["frechet"], rel=1e-4)
    assert guided.protocol.guidance == 3.0
    for option, value in (("--guidance", "3"), ("--steps", "3"), ("--teacher", "runs/tiny")):
        refused(2, "evaluate", "x.npz", option, value, says=["x.npz", option])


def test_images_of_a_file_and_a_folder_measure_as_the_model_does(measured, done, runs):
    first, _ = measured("runs/cd")
    for out in ("x.npz", "x"):
        done("sample", "runs/cd", "--num", "40", "--out", out)
        other, _ = measured(out)
        assert other.values == pytest.approx(first.values, rel=1e-4)
        assert (other.steps, other.solver) == (0, None)


def test_the_best_solver_at_a_cost(measured, refused, runs):
    """What is written is the best of the three; each is what its own sampler gives."""
    best, _ = measured("runs/tiny", "--evaluations", "5")
    evaluation = Evaluation.against(Digits().dataset(), num=40)
    model, rows = load("runs/tiny"), []
    for sampler in (Ode(5, solver=Euler()), Ode(3, solver=Heun()), Ode(5, solver=Dpmpp2m())):
        rows.append(evaluation.of_model("tiny", model, sampler, evaluations=5))
    least = best_of(rows)
    assert best.evaluations == 5
    assert (best.solver, best.steps, best.values) == (least.solver, least.steps, least.values)
    assert best.protocol.tried == ("euler", "heun", "dpmpp_2m")
    heun, _ = measured("runs/tiny", "--evaluations", "5", "--solvers", "heun")
    assert (heun.solver, heun.steps, heun.values) == ("heun", 3, rows[1].values)
    words = ("evaluate", "runs/tiny", "--steps", "2", "--evaluations", "2")
    refused(2, *words, says=["--steps", "--evaluations"])
    refused(2, "evaluate", "runs/cd", "--evaluations", "2", says="--steps")
    words = ("evaluate", "runs/tiny", "--evaluations", "2", "--solvers", "hein")
    refused(2, *words, says=["hein", "heun"])


def test_the_first_measure_decides_which_solver_is_best(measured, runs):
    words = ("runs/tiny", "--evaluations", "3", "--measures")
    best, _ = measured(*words, "diversity,frechet")
    for solver in best.protocol.tried:
        other, _ = measured(*words, "diversity", "--solvers", solver)
        assert other.values["diversity"] <= best.values["diversity"]


class TestMeasures:
    def test_those_that_were_chosen(self, measured, runs):
        everything, _ = measured("runs/cd")
        result, out = measured("runs/cd", "--measures", "diversity,frechet")
        assert list(result.values) == ["diversity", "frechet"]
        assert result.values.items() <= everything.values.items()
        assert out.index("diversity ↑") < out.index("Fréchet distance ↓")
        assert "confirmed" not in out

    def test_a_teacher_of_the_same_noise(self, measured, refused, runs):
        result, _ = measured(
            *("runs/tiny", "--steps", "4", "--teacher", "runs/tiny"),
            *("--measures", "teacher_distance,authenticity"),
        )
        assert result.values["teacher_distance"] == 0.0  # 4 steps are its own number
        assert 0 <= result.values["authenticity"] <= 1
        words = ("evaluate", "runs/cd", "--measures", "teacher_distance")
        refused(2, *words, says=["teacher_distance", "the samples have no teachers"])

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("frechett", ["frechett", "frechet"]),
            ("frechet,frechet", ["frechet", "twice"]),
            ("", "--measures"),
            ("{kind: frechet, k: 3}", ["frechet", "'k'"]),
            ("[", "--measures"),
        ],
    )
    def test_what_cannot_be_chosen(self, refused, runs, text, says):
        refused(2, "evaluate", "runs/cd", "--measures", text, says=says)

    def test_without_labels(self, measured, refused, runs):
        images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
        np.savez("x.npz", arr_0=images)
        result, out = measured("x.npz")
        assert list(result.values) == ["frechet", "kernel_distance"]
        assert "left out: confirmed (the samples have no labels); diversity" in out
        words = ("evaluate", "x.npz", "--measures", "frechet,confirmed")
        refused(2, *words, says=["confirmed", "no labels"])

    def test_a_reference_without_labels(self, measured, runs, tmp_path):
        write_pair(tmp_path / "data", 60, size=8)
        (tmp_path / "data" / "train-labels-idx1-ubyte").unlink()
        result, out = measured("runs/cd", "--reference", "data")
        assert list(result.values) == ["frechet", "kernel_distance"]
        assert "confirmed (the reference has no labels)" in out


class TestAgainst:
    def test_an_earlier_result(self, done, fewstep, runs):
        done("evaluate", "runs/cd", "--num", "40", "--out", "a.json")
        out = done("evaluate", "runs/cd", "--num", "40", "--steps", "1", "--against", "a.json")
        earlier = read_result(Path("a.json"))
        assert f"{earlier.values['frechet']:.2f}" in out
        assert len([line for line in out.splitlines() if line.startswith("cd ")]) == 2
        for num in ("41", "42"):
            ended = fewstep("evaluate", "runs/cd", "--num", num, "--against", "a.json")
            assert ended.code == 2
            assert "cannot be compared" in ended.err
            assert f"number of samples: 40 against {num}" in ended.err

    def test_it_is_refused_before_the_work(self, done, refused, runs, request):
        done("evaluate", "runs/cd", "--num", "40", "--out", "a.json")
        request.getfixturevalue("asleep")
        words = ("evaluate", "runs/cd", "--num", "41", "--against", "a.json")
        refused(2, *words, says=["earlier result of cd", "number of samples"])

    def test_another_reference_is_not_compared(self, refused, done, runs, tmp_path):
        write_pair(tmp_path / "data", 60, size=8)
        done("evaluate", "runs/cd", "--num", "40", "--out", "a.json")
        words = ("evaluate", "runs/cd", "--num", "40", "--reference", "data")
        refused(2, *words, "--against", "a.json", says=["reference: ", "reference images: 1415"])

    def test_other_measures_are_shown_beside_it(self, done, refused, runs):
        """Two results need one measure in common; a cell that was not measured is empty."""
        done("evaluate", "runs/cd", "--num", "40", "--out", "a.json")
        words = ("evaluate", "runs/cd", "--num", "40", "--against", "a.json", "--measures")
        _, _, mine, earlier, *_ = done(*words, "authenticity,frechet").splitlines()
        assert (mine.count("%"), earlier.count("%")) == (1, 2)
        refused(
            2,
            *words,
            "authenticity",
            says="measures: frechet, kernel_distance, confirmed, diversity against",
        )

    def test_what_a_newer_fewstep_wrote_is_named(self, done, refused, runs):
        done("evaluate", "runs/cd", "--num", "40", "--out", "a.json")
        plain = json.loads(Path("a.json").read_text())
        words = ("evaluate", "runs/cd", "--num", "40", "--against", "a.json")
        newer = plain | {"protocol": plain["protocol"] | {"crop": "centre"}}
        Path("a.json").write_text(json.dumps(newer))
        refused(2, *words, says="crop: in one alone, and unknown to this fewstep")
        Path("a.json").write_text(json.dumps(plain | {"joules": 3}))
        refused(2, *words, says=["a.json", "joules", "unknown to this fewstep"])


def save_npz(name="x.npz", **arrays):
    generator = np.random.default_rng(0)
    first = {
        "arr_0": generator.integers(0, 256, (20, 8, 8, 1), dtype=np.uint8),
        "arr_1": np.arange(20) % 10,
    }
    np.savez(name, **{key: value for key, value in (first | arrays).items() if value is not None})
    return first["arr_0"]


class TestPicturesOfOtherSizes:
    """What is measured and what it is compared with are read with the same options."""

    @pytest.fixture
    def folders(self):
        pictures = save_npz(arr_1=None)[:, :, :, 0]
        for name, size in (("small", 8), ("large", 16)):
            Path(name).mkdir()
            for i, picture in enumerate(pictures):
                image = Image.fromarray(picture).resize((size, size), Image.Resampling.NEAREST)
                image.save(f"{name}/{i:02}.png")

    def test_size(self, done, refused, folders):
        words = ("--reference", "large", "--measures", "frechet", "--out", "x.json")
        judge = ("--features", "digits_classifier")
        refused(2, "evaluate", "large", *words, *judge, says=["(1, 8, 8)", "(1, 16, 16)"])
        done("evaluate", "large", "size=8", "split=all", *words)
        result = read_result(Path("x.json"))
        assert result.values["frechet"] == pytest.approx(0, abs=1e-4)
        assert (result.protocol.reference_images, result.protocol.split) == (20, "all")

    def test_bad_pictures(self, done, refused, folders):
        for i in range(100):
            shutil.copy("small/03.png", f"small/more_{i:03}.png")
        Path("small/04.png").write_bytes(b"x")
        words = ("--reference", "small", "--measures", "frechet")
        refused(2, "evaluate", "large", *words, says=["1 of 120", "04.png", "on_bad=skip"])
        done("evaluate", "small", "on_bad=skip", *words, "--out", "x.json")
        result = read_result(Path("x.json"))
        assert (result.protocol.num, result.protocol.reference_images) == (119, 98)
        assert result.protocol.split == "train"

    def test_options_that_are_none(self, refused, folders):
        refused(2, "evaluate", "small", "sise=8", "--reference", "large", says=["sise", "size"])


class TestRefused:
    def test_devices(self, refused, runs):
        for name in ("meta", "gpu"):
            refused(2, "evaluate", "runs/cd", "--device", name, says=["device", name])

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
        words = ("x.npz", "--reference", "data", "--features", "digits_classifier")
        refused(2, "evaluate", *words, says=["(1, 28, 28)", "--features"])

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


def test_shapes_have_a_judge_of_their_own(measured, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = Shapes(num=30, seed=1).read().images.permute(0, 2, 3, 1)
    np.savez("x.npz", arr_0=images.numpy())
    words = ("x.npz", "num=40", "--reference", "shapes", "--measures")
    result, _ = measured(*words, "frechet")
    assert result.protocol.features == f"classifier {find_classifier('shapes_classifier').stamp}"
    reason = "caption_accuracy cannot be measured: the samples have no captions"
    refused(2, "evaluate", *words, "caption_accuracy", says=reason)


class TestOutside:
    """A measure from a file of the user's own goes the whole way: no line of fewstep knows it."""

    @pytest.fixture(autouse=True)
    def _unknown(self, monkeypatch):
        monkeypatch.setattr(plugins, "_loaded", {})

    def test_from_evaluate_to_report(self, measured, refused, runs):
        result, out = measured("runs/cd", "--report", "page.html", *PLUGIN)
        kinds = ["frechet", "kernel_distance", "confirmed", "diversity", "lab_brightness"]
        assert list(result.values) == kinds
        images = (255 * load("runs/cd").generate(num=40)).round() / 255
        expected = 1000 * images.mean() / Digits().dataset().floats().mean()
        assert result.values["lab_brightness"] == pytest.approx(expected.item(), rel=1e-5)
        page, shown = Path("page.html").read_text(), f"{result.values['lab_brightness']:.3f}"
        for text in (out, page):
            assert "brightness in permille ↑" in text
            assert shown in text
        assert "mean grey value, relative to the reference&#39;s; higher is better" in page
        assert result.protocol.measures["lab_brightness"].source.startswith("lab_measure.py, sha")

    def test_its_options_are_part_of_the_protocol(self, measured, refused, done, runs):
        text = "{kind: lab_brightness, power: 2}"
        result, _ = measured("runs/cd", "--measures", text, *PLUGIN)
        assert result.protocol.measures["lab_brightness"].options == {"power": 2.0}
        words = ("evaluate", "runs/cd", "--num", "40", "--against", "result.json", *PLUGIN)
        refused(2, *words, says="options of lab_brightness: {'power': 2.0} against {'power': 1.0}")
        assert "brightness" in done(*words, "--measures", text)

    def test_a_result_explains_itself(self, measured, done, runs):
        """Who has the file of the result needs no plug-in to read it."""
        result, _ = measured("runs/cd", *PLUGIN)
        plugins._loaded.clear()
        out = done("evaluate", "runs/cd", "--num", "40", "--against", "result.json")
        assert "brightness in permille ↑" in out
        assert f"{result.values['lab_brightness']:.3f}" in out

    def test_features(self, measured, runs):
        """They decide what can be measured, and a distance of squares grows with theirs."""
        words = ("runs/cd", "--measures", "frechet", *PLUGIN, "--features")
        result, _ = measured(*words, "lab_features")
        assert result.protocol.features == "pixels times 1"
        twice, _ = measured(*words, "{kind: lab_features, scale: 2}")
        assert twice.values["frechet"] == pytest.approx(4 * result.values["frechet"], rel=1e-5)
        everything, _ = measured("runs/cd", *PLUGIN, "--features", "lab_features")
        reason = "pixels times 1 tells no classes, not 10"
        assert everything.protocol.left_out == {"confirmed": reason}

    def test_it_is_listed(self, done):
        listed = done("inspect", "measures", *PLUGIN)
        assert re.search(r"^lab_brightness +The mean grey value", listed, re.MULTILINE)
