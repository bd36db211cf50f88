"""`fewstep train`, and recipes with the overrides of the command line."""

import json
import shutil
from pathlib import Path

from PIL import Image
from tests.cli.conftest import STUDENT, TEACHER, logged, weights

from fewstep import load
from fewstep.cli.configure import RUNS, configured
from fewstep.data.digits import Digits
from fewstep.diffusion.solvers import Euler
from fewstep.errors import NotFiniteError
from fewstep.learning.schedules import Cosine
from fewstep.models.request import Answer
from fewstep.recipes.digits import digits_teacher
from fewstep.run import Run
from fewstep.training.trainer import Trainer
from fewstep.yaml import from_yaml


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
        status = json.loads((tiny / "status.json").read_text())
        assert status.pop("seconds") > 0
        expected = {"state": "finished", "step": 3, "steps": 3, "reason": "", "threads": 1}
        assert status == expected
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
        assert "goes on behind step 2 of 3" in out
        assert "half: step 2 of 3" not in out
        assert weights(unfinished) == weights(runs / "tiny")
        assert [line["step"] for line in logged(unfinished)] == [1, 2, 3]
        assert json.loads((unfinished / "status.json").read_text())["state"] == "finished"

    def test_the_folder_names_its_run(self, done, refused, runs, unfinished, monkeypatch):
        """As its run file does, also from within; a recipe of that name comes first."""
        out = done("train", "runs/half")
        assert "goes on behind step 2 of 3" in out
        assert weights(unfinished) == weights(runs / "tiny")
        assert "finished already" in done("train", "runs/half/", "trainer.keep=5")
        with monkeypatch.context() as patch:
            patch.chdir(unfinished)
            assert "../half is finished already" in done("train", ".")
        refused(
            3, "train", "runs/half", "trainer.batch=3", says="`fewstep train runs/half` goes on"
        )
        Path("digits_cd").mkdir()
        assert "digits_teacher" in done("train", "digits_cd", "--options")
        Path("empty").mkdir()
        refused(2, "train", "empty", says="empty is no run: it holds no run.yaml")

    def test_samples_that_are_not_finite_are_left_out_of_the_report(
        self, done, runs, unfinished, monkeypatch
    ):
        real = Answer.images

        def images(self):
            if self.sampler.steps == 1 and self.num == 10:
                raise NotFiniteError("10 of the first 10 images")
            return real(self)

        monkeypatch.setattr(Answer, "images", images)
        out = done(*TEACHER, "name=half")
        assert "warning: no samples with 1 step in the report: 10 of the first 10" in out
        page = (unfinished / "report.html").read_text()
        assert ">2 evaluations<" in page
        assert ">1 evaluation<" not in page

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
        assert "the run runs/tiny has no checkpoint yet" in ended.err
        assert "finished already" not in done(*TEACHER, "name=tiny", "trainer.seed=5")
        assert load("runs/tiny").card["trainer"]["seed"] == 5

    def test_a_page_that_is_interrupted(self, fewstep, done, runs, monkeypatch):
        """The run is finished, and a command writes the page."""

        def stopped(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("fewstep.report.of_run.drawn", stopped)
            ended = fewstep(*TEACHER, "name=unseen")
        assert ended.code == 130
        told = "runs/unseen/student is finished; its page is not: fewstep report runs/unseen writes"
        assert told in ended.out
        done("report", "runs/unseen")
        assert (runs / "unseen" / "report.html").is_file()

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
        teacher = {"kind": "saved", "path": "runs/tiny", "ema": None}
        assert plain["teacher"] == {**teacher, "lora": [], "lora_strengths": []}
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
        assert run.dump() == digits_teacher().dump()

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
