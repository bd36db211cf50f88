"""What each verb does and says when all is well."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.cli.conftest import STUDENT, TEACHER
from tests.data.idx_files import write_pair

import fewstep as package
from fewstep import load
from fewstep.cli.configure import RUNS, configured, listed
from fewstep.data.digits import Digits
from fewstep.diffusion.samplers import Ode, Renoise
from fewstep.diffusion.solvers import Dpmpp2m, Euler, Heun
from fewstep.diffusion.times import Explicit, Karras
from fewstep.learning.schedules import Cosine
from fewstep.metrics.evaluation import row
from fewstep.metrics.protocol import Reference, find_judge
from fewstep.models.unet import UNetModule
from fewstep.recipes import digits_teacher
from fewstep.run import Run
from fewstep.training.trainer import Trainer
from fewstep.yaml import from_yaml

HOME = Path(package.__file__).parent


@pytest.fixture
def done(fewstep):
    """Runs a command that must end well and say nothing on standard error; gives its output."""

    def call(*words):
        ended = fewstep(*words)
        assert ended.code == 0, ended
        assert ended.err == ""
        return ended.out

    return call


@pytest.fixture
def rows(monkeypatch):
    """Counts the images that go through a network."""
    seen, forward = [], UNetModule.forward

    def counted(self, x, *rest):
        seen.append(len(x))
        return forward(self, x, *rest)

    monkeypatch.setattr(UNetModule, "forward", counted)
    return seen


def arrays(path):
    with np.load(path, allow_pickle=False) as content:
        return dict(content)


def weights(run):
    return (run / "student" / "model.safetensors").read_bytes()


def logged(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


class TestInspect:
    @pytest.mark.parametrize("folder", ["methods", "recipes"])
    def test_lists_are_the_files_of_the_folder(self, done, folder):
        found = dict(line.split(maxsplit=1) for line in done("inspect", folder).splitlines())
        assert list(found) == sorted(
            p.stem for p in (HOME / folder).glob("*.py") if p.stem != "__init__"
        )
        for name, text in found.items():
            written = " ".join((HOME / folder / f"{name}.py").read_text(encoding="utf-8").split())
            assert written.startswith(f'"""{text}')
            assert text.endswith(".")
        assert found == listed(folder)

    @pytest.mark.parametrize("name", ["runs/cd", "runs/cd/student"])
    def test_a_student(self, done, runs, name):
        out = done("inspect", name)
        for text in (
            "1×8×8",
            "classes: 10",
            "evaluations: 2",
            "renoise",
            "cm_boundary",
            "guidance: none",
            "easy_cons",
        ):
            assert text in out
        model = load(name)
        assert f"{sum(p.numel() for p in model.denoiser.parameters()):,} parameters" in out
        assert Digits(limit=64).dataset().fingerprint() in out

    def test_a_teacher(self, done, runs):
        out = done("inspect", "runs/tiny")
        assert "evaluations: 7" in out
        assert "guidance: doubled, 1 to 8" in out
        assert '"finished"' in out


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
            ("tiny", ("--steps", "3", "--guidance", "1"), None, 5),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_steps_and_samplers(self, done, runs, rows, model, options, sampler, evaluations):
        """What is printed is what the network did, and the images are the sampler's."""
        out = done("sample", f"runs/{model}", "--out", "x.npz", "--num", "10", *options)
        assert f"{evaluations} evaluations each" in out
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

    def test_a_new_folder_inside_new_folders(self, done, runs):
        done("sample", "runs/cd", "--out", "a/b/c", "--num", "2")
        assert len(list(Path("a/b/c").iterdir())) == 2
        Path("empty").mkdir()
        done("sample", "runs/cd", "--out", "empty", "--num", "2")
        assert len(list(Path("empty").iterdir())) == 2


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


class TestTrain:
    def test_what_a_run_leaves(self, runs):
        tiny = runs / "tiny"
        names = {path.name for path in tiny.iterdir()}
        assert {
            "run.yaml",
            "log.jsonl",
            "status.json",
            "checkpoints",
            "student",
            "report.html",
        } <= names
        assert json.loads((tiny / "status.json").read_text()) == {
            "state": "finished",
            "step": 3,
            "steps": 3,
            "reason": "",
        }
        assert [line["step"] for line in logged(tiny)] == [1, 2, 3]
        assert "<title>tiny</title>" in (tiny / "report.html").read_text()
        assert sorted(p.name for p in (tiny / "checkpoints").iterdir()) == [
            "step-00000002",
            "step-00000003",
        ]
        card = load(tiny).card
        assert card["data"]["images"] == 64
        assert card["data"]["fingerprint"] == Digits(limit=64).dataset().fingerprint()
        assert (card["ema"], card["batches"]) == (0.5, 3)

    def test_a_finished_run_says_so(self, done, runs):
        before = {
            path: path.read_bytes()
            for path in runs.rglob("*")
            if path.is_file() and path.name != ".lock"
        }
        out = done(*TEACHER, "name=tiny")
        assert "finished already" in out
        assert "--restart" in out
        assert {path: path.read_bytes() for path in before} == before

    def test_free_options_may_change(self, done, runs):
        assert "finished already" in done(
            *TEACHER, "name=tiny", "trainer.keep=5", "trainer.log_every=1"
        )

    def test_so_may_the_number_of_workers(self, done, runs):
        for i in range(20):
            path = Path(f"pictures/{i % 2}/{i}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 10 * i).save(path)
        words = [*TEACHER, "name=workers", "data={kind: folder, path: pictures}", "data.limit=64"]
        done(*words)
        assert "finished already" in done(*words, "data.workers=2")

    def test_an_unfinished_run_goes_on(self, done, runs, unfinished):
        out = done(*TEACHER, "name=half")
        assert "step 3 of 3" in out
        assert "step 2 of 3" not in out
        assert weights(unfinished) == weights(runs / "tiny")
        assert [line["step"] for line in logged(unfinished)] == [1, 2, 3]
        assert json.loads((unfinished / "status.json").read_text())["state"] == "finished"

    def test_a_run_that_was_killed_before_its_student_was_saved(self, done, runs, unfinished):
        shutil.copytree(
            runs / "tiny" / "checkpoints" / "step-00000003",
            unfinished / "checkpoints" / "step-00000003",
        )
        done(*TEACHER, "name=half")
        assert weights(unfinished) == weights(runs / "tiny")

    def test_a_damaged_checkpoint_is_named_and_the_one_before_used(self, done, runs, unfinished):
        tiny = runs / "tiny"
        (tiny / "status.json").unlink()
        before = weights(tiny)
        file = tiny / "checkpoints" / "step-00000003" / "nets.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        out = done(*TEACHER, "name=tiny")
        assert "step-00000003 is damaged" in out
        assert weights(tiny) == before

    def test_grids_while_it_trains(self, done, runs):
        """Each is what `sample` makes of the student at that step; a restart throws them away."""
        words = [*TEACHER, "name=shown", "trainer.sample_every=2", "trainer.sample_steps=[1,3]"]
        done(*words)
        folder = runs / "shown" / "samples"
        names = [f"step-{step:08d}-{steps}.png" for step in (2, 3) for steps in (1, 3)]
        assert sorted(path.name for path in folder.iterdir()) == names
        for steps in (1, 3):
            done("sample", "runs/shown", "--out", "grid.png", "--num", "40", "--steps", str(steps))
            assert (
                Path("grid.png").read_bytes()
                == (folder / f"step-00000003-{steps}.png").read_bytes()
            )
        assert (folder / names[0]).read_bytes() != (folder / names[2]).read_bytes()
        done(*words[:-2], "--restart")
        assert not folder.exists()

    def test_restart(self, done, runs):
        before = weights(runs / "tiny")
        out = done(*TEACHER, "name=tiny", "--restart", "trainer.log_every=1")
        assert "step 1 of 3" in out
        assert weights(runs / "tiny") == before
        assert [line["step"] for line in logged(runs / "tiny")] == [1, 2, 3]
        done(*TEACHER, "name=tiny", "--restart", "trainer.seed=5")
        assert weights(runs / "tiny") != before
        assert load("runs/tiny").card["trainer"]["seed"] == 5

    def test_a_restart_that_is_interrupted_is_not_finished(self, fewstep, done, runs, monkeypatch):
        """The status and the student of the run before belong to another configuration."""

        def stopped(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "fit", stopped)
            assert fewstep(*TEACHER, "name=tiny", "--restart", "trainer.seed=5").code == 130
        ended = fewstep("sample", "runs/tiny", "--out", "x.png")
        assert ended.code == 2
        assert "no finished model yet" in ended.err
        assert "finished already" not in done(*TEACHER, "name=tiny", "trainer.seed=5")
        assert load("runs/tiny").card["trainer"]["seed"] == 5

    def test_the_run_file_reproduces_the_run(self, done, runs):
        done("train", "runs/tiny/run.yaml", "name=again")
        for name in ("model.safetensors", "model-0.9995.safetensors", "model.json"):
            assert (runs / "again" / "student" / name).read_bytes() == (
                runs / "tiny" / "student" / name
            ).read_bytes()
        assert (runs / "again" / "run.yaml").read_bytes() == (
            runs / "tiny" / "run.yaml"
        ).read_bytes()
        assert "finished already" in done("train", "runs/tiny/run.yaml")

    def test_the_run_file_is_resolved(self, runs):
        plain = from_yaml((runs / "cd" / "run.yaml").read_text(), "run.yaml")
        run = Run.parse(plain)
        assert run.dump() == plain
        assert plain["teacher"] == {"kind": "saved", "path": "runs/tiny", "ema": None}
        assert plain["trainer"]["steps"] == 3
        assert run == configured("digits_cd", STUDENT[2:])[0]

    def test_the_average_of_a_teacher(self, done, runs):
        """The student begins with the weights that it is told: teacher=runs/tiny
        teacher.ema=0.9995.
        """
        done(*STUDENT, "name=other", "teacher.ema=0.9995")
        assert weights(runs / "other") != weights(runs / "cd")
        done("train", "runs/cd/run.yaml", "name=third", "teacher.ema=0.9995")
        assert weights(runs / "third") == weights(runs / "other")

    def test_another_method_on_the_command_line(self, done, runs):
        done(*STUDENT, "name=ct", "method=consistency_training", "method.first=2", "method.last=4")
        method = load("runs/ct").card["method"]
        assert (method["kind"], method["first"], method["last"]) == ("consistency_training", 2, 4)

    def test_plugins(self, done, runs, tmp_path, monkeypatch):
        """A module of the user's own; its classes are named like ours."""
        (tmp_path / "my_schedule.py").write_text(
            "from dataclasses import dataclass\n"
            "from fewstep.choice import Natural\n"
            "from fewstep.learning.schedules import Schedule\n\n"
            "@dataclass(frozen=True)\n"
            "class MyHalf(Schedule):\n"
            "    warmup: Natural = 0\n\n"
            "    def after_warmup(self, progress):\n"
            "        return 0.5\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        done(*TEACHER, "name=mine", "trainer.schedule=my_half", "--plugin", "my_schedule")
        assert [line["rate"] for line in logged(runs / "mine")] == [0.5, 0.5, 0.5]


class TestConfigured:
    """Recipes with overrides, without carrying them out."""

    def test_a_recipe_alone(self):
        run, folder = configured("digits_teacher", [])
        assert folder == RUNS / "digits_teacher"
        assert run.dump() == digits_teacher.recipe().dump()

    def test_overrides(self):
        words = [
            "name=mine",
            "trainer.optimizer.lr=2e-4",
            "trainer.ema=[0.9, 0.99]",
            "data.limit=7",
            "dropout=null",
        ]
        run, folder = configured(
            "digits_cd", [*words, "trainer.schedule={kind: cosine, warmup: 3}"]
        )
        assert folder == RUNS / "mine"
        assert run.trainer.optimizer.lr == 2e-4
        assert run.trainer.ema == (0.9, 0.99)
        assert run.data.limit == 7
        assert run.dropout is None
        assert run.trainer.schedule == Cosine(warmup=3)

    def test_the_last_word_wins(self):
        run, _ = configured("digits_cd", ["trainer.steps=3", "trainer.steps=4"])
        assert run.trainer.steps == 4

    def test_an_option_of_a_kind_that_was_named_before(self):
        run, _ = configured(
            "digits_cd", ["method=consistency_distillation", "method.bins=7", "method.solver=euler"]
        )
        assert run.method.bins == 7
        assert run.method.solver == Euler()

    def test_the_name_of_a_run_file(self, tmp_path):
        text = "data: digits\nmethod: diffusion\n"
        (tmp_path / "mine.yaml").write_text(text)
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "run.yaml").write_text(text)
        assert configured(str(tmp_path / "mine.yaml"), [])[1] == RUNS / "mine"
        assert configured(str(tmp_path / "folder" / "run.yaml"), [])[1] == RUNS / "folder"

    def test_names_with_spaces_and_umlauts(self):
        assert configured("digits_cd", ["name=größer 2"])[1] == RUNS / "größer 2"


def test_the_version(done):
    assert done("--version") == f"fewstep {package.__version__}\n"


VERBS = ("demo", "train", "sample", "evaluate", "export", "inspect", "data")


@pytest.mark.parametrize("verb", [*((v,) for v in VERBS), ("data", "check")], ids=" ".join)
def test_help_of_every_verb_has_an_example(done, verb):
    out = done(*verb, "--help")
    assert "Usage:" in out
    assert f"Example: fewstep {' '.join(verb)}" in out or verb == ("data",)


def test_the_help_names_every_verb(done):
    out = done("--help")
    for verb in VERBS:
        assert f"\n  {verb} " in out


def test_help_and_version_do_not_wait_for_torch():
    """The heavy libraries take seconds; what needs no network must not load them."""
    script = (
        "import sys\n"
        "from fewstep.cli.main import main\n"
        "for words in (['--help'], ['--version'], ['train', '--help'], ['inspect', 'methods']):\n"
        "    try:\n"
        "        main(words)\n"
        "    except SystemExit as end:\n"
        "        assert end.code == 0, end.code\n"
        "heavy = {'torch', 'diffusers', 'sklearn', 'matplotlib', 'numpy', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.splitlines()[-1] == "[]"
    assert f"fewstep {package.__version__}" in ended.stdout
    assert ended.stderr == ""


def test_the_package_s_names_are_there():
    assert package.load is load
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="nosuch"):
        _ = package.nosuch
