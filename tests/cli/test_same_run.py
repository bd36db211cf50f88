"""A run that goes on is what its contents are: changed ones are refused wherever they lie, the same
ones are taken wherever they lie, and options that an old file does not know have their defaults.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.cli.conftest import STUDENT, TEACHER, logged, weights
from tests.data.picture_files import made, write_pictures

from fewstep import load
from fewstep.training.checkpoint import Checkpoints, _own_hash
from fewstep.yaml import from_yaml, to_yaml

ROOT = Path(__file__).parents[1]


def stopped(runs, of, name):
    """A copy of a finished run as it was behind step 2 of 3."""
    half = shutil.copytree(runs / of, runs / name)
    for part in ("student", "checkpoints/step-00000003"):
        shutil.rmtree(half / part)
    (half / "report.html").unlink()
    (half / "status.json").write_text('{"state": "stopped", "step": 2, "steps": 3, "reason": ""}')
    return half


def changed_model(folder, **parts):
    """Another model in the same place, as whole as the one before."""
    model = load(folder)
    if not parts:
        with torch.no_grad():
            for parameter in model.denoiser.parameters():
                parameter.mul_(1.5)
    for part, value in parts.items():
        setattr(model, part, value)
    model.save(folder / "student")


def flat(folder):
    return {
        path: path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


class TestModels:
    def test_another_teacher_in_the_same_place(self, refused, done, runs):
        half = stopped(runs, "cd", "half")
        changed_model(runs / "tiny")
        before = flat(half)
        refused(3, *STUDENT, "name=half", says=["another teacher", "weights: ", "--restart"])
        assert flat(half) == before
        shutil.rmtree(runs / "cd")
        done(*STUDENT, "name=half", "--restart")

    def test_the_same_weights_with_another_meaning(self, refused, runs):
        model = load(runs / "tiny")
        stopped(runs, "cd", "half")
        changed_model(runs / "tiny", guidance=model.guidance._replace(high=9.0))
        refused(3, *STUDENT, "name=half", says=["another teacher", "guidance.high: ", "9.0"])

    def test_what_does_not_matter_may_change(self, done, runs):
        """Its card, its other averages, and that it was saved again."""
        stopped(runs, "cd", "half")
        changed_model(runs / "tiny", card={"note": "mine"}, variants={})
        done(*STUDENT, "name=half")
        assert weights(runs / "half") == weights(runs / "cd")

    def test_another_start(self, refused, done, runs):
        shutil.copytree(runs / "tiny", runs / "first")
        words = [*STUDENT, "start=runs/first", "name=half"]
        done(*words)
        half = stopped(runs, "half", "other")
        changed_model(runs / "first")
        words[-1] = "name=other"
        refused(3, *words, says=["another start", "weights: "])
        shutil.move(runs / "tiny", runs / "elsewhere")
        words[2] = "teacher=runs/elsewhere"
        refused(3, *words, says=["another start", "weights: "])
        assert not (half / "student").exists()

    @pytest.mark.parametrize("state", ["half", "cd"])
    def test_a_teacher_that_was_moved(self, done, refused, runs, state):
        """Of an unfinished run, and of a finished one."""
        expected = weights(runs / "cd")
        stopped(runs, "cd", "half")
        shutil.move(runs / "tiny", runs / "elsewhere")
        words = [*STUDENT, f"name={state}"]
        words[2] = "teacher=runs/elsewhere"
        done(*words)
        assert weights(runs / state) == expected
        plain = from_yaml((runs / state / "run.yaml").read_text(), "run.yaml")
        assert plain["teacher"]["path"] == "runs/elsewhere"

    def test_another_teacher_at_another_place(self, refused, runs):
        half = stopped(runs, "cd", "half")
        shutil.copytree(runs / "tiny", runs / "other")
        changed_model(runs / "other")
        for folder in (half, runs / "cd"):
            before = flat(folder)
            words = [*STUDENT, f"name={folder.name}"]
            words[2] = "teacher=runs/other"
            refused(3, *words, says=["another teacher", "weights: "])
            assert flat(folder) == before


def test_a_checkpoint_of_other_networks(refused, runs):
    """Where no run file tells it."""
    half = stopped(runs, "tiny", "half")
    (half / "run.yaml").unlink()
    words = [*TEACHER, "name=half", "teacher.network.channels=16"]
    refused(3, *words, says=["network student has other weights", "--restart"])


PICTURES = [*TEACHER, "data=folder"]


class TestData:
    @pytest.fixture
    def pictures(self, done, runs):
        """A run on pictures in jobA, finished; `half` is the same behind step 2."""
        images, labels = made(40, shape=(1, 8, 8))
        for i, (image, label) in enumerate(zip(images, labels)):
            write_pictures(Path("jobA"), **{f"{label}__{i}": image})
        done(*PICTURES, "name=whole", "data.path=jobA")
        stopped(runs, "whole", "half")

    @pytest.mark.parametrize("by", ["recipe", "run file"])
    def test_data_that_were_moved(self, done, runs, pictures, by):
        shutil.move("jobA", "jobB")
        begin = PICTURES if by == "recipe" else ["train", "runs/half/run.yaml"]
        done(*begin, "name=half", "data.path=jobB")
        assert weights(runs / "half") == weights(runs / "whole")
        assert [line["step"] for line in logged(runs / "half")] == [1, 2, 3]
        assert "finished already" in done(*begin, "name=half", "data.path=jobB")

    def test_of_a_finished_run(self, done, refused, runs, pictures):
        shutil.move("jobA", "jobB")
        before = weights(runs / "whole")
        assert "finished already" in done(*PICTURES, "name=whole", "data.path=jobB")
        assert weights(runs / "whole") == before
        assert json.loads((runs / "whole/status.json").read_text())["state"] == "finished"
        shutil.rmtree(runs / "whole" / "checkpoints")
        refused(3, *PICTURES, "name=whole", "data.path=./jobB", says=["no checkpoint is left"])

    @pytest.mark.parametrize("name", ["half", "whole"])
    def test_other_data_are_refused_wherever_they_lie(self, refused, runs, pictures, name):
        shutil.copytree("jobA", "jobB")
        next(Path("jobB").rglob("*.png")).unlink()
        before = flat(runs / name)
        refused(3, *PICTURES, f"name={name}", "data.path=jobB", says="another data: ")
        refused(2, *PICTURES, f"name={name}", "data.path=nowhere", says="nowhere")
        assert flat(runs / name) == before
        if name == "half":
            shutil.rmtree("jobA")
            Path("jobB").rename("jobA")
            refused(3, *PICTURES, "name=half", "data.path=jobA", says="another data: ")

    def test_other_options_stay(self, refused, pictures):
        words = [*PICTURES, "name=half", "data.path=./jobA"]
        refused(3, *words, "data.limit=30", says="data.limit: 64 -> 30")
        refused(3, *words, "data.flip=true", says="data.flip: False -> True")


def forget(path, *keys):
    """Takes an option out of a file, as a release before it wrote it."""
    plain = from_yaml(path.read_text(), "run.yaml")
    inner = plain
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    path.write_text(to_yaml(plain))


def forget_fact(run, *keys):
    for path in run.glob("checkpoints/*/manifest.json"):
        manifest = json.loads(path.read_text())
        del manifest["sha256"]
        inner = manifest["facts"]
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        path.write_text(json.dumps(manifest | {"sha256": _own_hash(manifest)}))


class TestOlderFiles:
    OPTIONS = (
        ("start",),
        ("adaptation",),
        ("trainer", "clip"),
        ("trainer", "max_skips"),
        ("trainer", "optimizers"),
        ("trainer", "schedule", "end"),
        ("teacher", "ema"),
        ("data", "flip"),
        ("method", "distance"),
        ("method", "q"),
    )

    @pytest.mark.parametrize("keys", OPTIONS, ids=".".join)
    def test_an_option_that_a_run_file_does_not_know_has_its_default(self, done, runs, keys):
        stopped(runs, "cd", "half")
        for name in ("cd", "half"):
            forget(runs / name / "run.yaml", *keys)
        assert "finished already" in done(*STUDENT, "name=cd")
        done(*STUDENT, "name=half")
        assert weights(runs / "half") == weights(runs / "cd")

    @pytest.mark.parametrize(
        "keys",
        [
            ("trainer", "clip"),
            ("trainer", "optimizer", "beta1"),
            ("method", "distance"),
            ("teacher",),
            ("teacher", "guidance"),
            ("teacher", "network", "extra"),
            ("setting",),
            ("setting", "sharding"),
        ],
        ids=".".join,
    )
    def test_nor_a_checkpoint(self, done, runs, keys):
        half = stopped(runs, "cd", "half")
        forget_fact(half, *keys)
        done(*STUDENT, "name=half")
        assert weights(half) == weights(runs / "cd")

    def test_what_it_does_not_know_is_still_compared(self, refused, runs):
        half = stopped(runs, "tiny", "half")
        forget(half / "run.yaml", "trainer", "clip")
        words = [*TEACHER, "name=half", "trainer.clip=3"]
        refused(3, *words, says="trainer.clip: 1.0 -> 3.0")
        (half / "run.yaml").unlink()
        forget_fact(half, "trainer", "clip")
        refused(3, *words, says="trainer: clip: 1.0 -> 3.0")

    def test_an_option_that_is_no_more_is_named(self, refused, runs):
        half = stopped(runs, "tiny", "half")
        path = half / "run.yaml"
        plain = from_yaml(path.read_text(), "run.yaml")
        plain["trainer"]["momentum"] = 0.9
        path.write_text(to_yaml(plain))
        refused(3, *TEACHER, "name=half", says="trainer.momentum: 0.9 -> None")


class TestFormats:
    """Runs that earlier versions left behind step 2 of 3, one folder for each format."""

    @pytest.mark.parametrize("number", [1])
    def test_a_run_of_each_format_goes_on(self, done, tmp_path, number):
        shutil.copytree(ROOT / "formats" / str(number), tmp_path / "runs" / "old")
        out = done("train", "runs/old/run.yaml")
        assert "step 3 of 3" in out
        assert "goes on behind step 2 of 3" in out
        assert "old: step 2 of 3" not in out
        assert [line["step"] for line in logged(tmp_path / "runs" / "old")] == [1, 2, 3]
        assert Checkpoints(tmp_path / "runs" / "old" / "checkpoints").newest() == 3
        assert load(tmp_path / "runs" / "old").generate(num=2).isfinite().all()
