"""Every verb on what was written outside the package, told by --plugin alone."""

import json
from pathlib import Path

import pytest
from tests.cli.conftest import LOOP

from fewstep import load, plugins
from fewstep.cli.main import main
from fewstep.yaml import read_yaml

FILE = Path(__file__).parent / "lab_outside.py"
PLUGIN = ("--plugin", str(FILE))
KINDS = ("grid", "step", "density", "schedule", "optimizer", "noise", "net", "method", "cubed")
TEACHER = (
    *("train", "digits_teacher", "name=teacher", *LOOP),
    *("teacher.network=lab_net", "data=lab_noise", "trainer.optimizer=lab_optimizer"),
    *("trainer.schedule=lab_schedule", "trainer.schedule.share=0.25", "method.density=lab_density"),
)
STUDENT = ("train", "digits_cd", "name=student", "teacher=runs/teacher", "data=lab_noise", *LOOP)


@pytest.fixture(autouse=True)
def _unknown(monkeypatch):
    """Every test begins without plug-ins, as a new process does."""
    monkeypatch.setattr(plugins, "_loaded", {})


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """Runs of a teacher and a student, all of whose parts are from outside."""
    home = tmp_path_factory.mktemp("outside")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setattr(plugins, "_loaded", {})
        patch.setattr("fewstep.report.run_report.curves", lambda *_, **__: "<svg></svg>")
        for words in (TEACHER, (*STUDENT, "method=lab_method")):
            with pytest.raises(SystemExit) as ended:
                main([*words, *PLUGIN])
            assert ended.value.code == 0
    return home


@pytest.fixture
def here(outside, monkeypatch):
    """The folder with these runs."""
    monkeypatch.chdir(outside)
    plugins._loaded.clear()
    return outside


@pytest.fixture
def done(fewstep):
    """A command as a new process would run it; it must end well. Gives its output."""

    def call(*words):
        plugins._loaded.clear()
        ended = fewstep(*words)
        assert ended.code == 0, ended
        return ended.out

    return call


def test_a_run_notes_where_its_parts_are_from(here):
    noted = read_yaml(here / "runs/teacher/run.yaml")["plugins"]
    assert set(noted) == {f"lab_{k}" for k in ("net", "noise", "optimizer", "schedule", "density")}
    assert all(text.startswith("lab_outside.py, sha256 ") for text in noted.values())
    model = json.loads((here / "runs/student/student/model.json").read_text())
    assert set(model["plugins"]) == {"lab_net", "lab_grid"}
    assert "plugins" not in read_yaml(here / "runs/teacher/run.yaml")["method"]


def test_the_rate_is_the_outside_schedules(here):
    lines = (here / "runs/teacher/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["rate"] for line in lines] == [0.25, 0.25, 0.25]


def test_a_run_goes_on_from_its_own_file(here, done):
    out = done("train", "runs/teacher/run.yaml", *PLUGIN)
    assert "finished already" in out
    done("train", "runs/student/run.yaml", "name=again", *PLUGIN)
    first, second = (
        (here / f"runs/{name}/student/model.safetensors").read_bytes()
        for name in ("student", "again")
    )
    assert first == second


def test_sample_evaluate_inspect(here, done):
    assert "16 images, 2 steps" in done("sample", "runs/student", "--out", "x.png", *PLUGIN)
    out = done("evaluate", "runs/student", "--num", "40", "--reference", "lab_noise", *PLUGIN)
    assert "student" in out
    out = done("inspect", "runs/student", *PLUGIN)
    assert "lab_net" in out
    assert "lab_outside.py, sha256" in out


def test_the_option_stands_anywhere(here, done):
    done(*PLUGIN, "sample", "runs/student", "--out", "y.png")
    done("sample", f"--plugin={FILE}", "runs/student", "--out", "y.png")


def test_plan_and_data(here, done):
    out = done("plan", "runs/student/run.yaml", "--shape", "1,8,8", "--classes", "10", *PLUGIN)
    assert "peak" in out
    out = done("data", "check", "lab_noise", "count=50", *PLUGIN)
    assert "kind: lab_noise" in out
    assert "images: 50 of 8×8" in out


@pytest.mark.parametrize(
    "words",
    [
        # A grid that ends at the data: so must the student's own.
        ["times=lab_grid", "sample_times.end=t_data"],
        ["solver=lab_step"],
        ["distance=lab_cubed"],
    ],
)
def test_parts_of_our_own_methods(here, done, words):
    name, _, kind = words[0].partition("=")
    options = [f"method.{word}" for word in words]
    done(*STUDENT, f"name={name}", "method.bins=4", *options, "--restart", *PLUGIN)
    assert kind in read_yaml(here / f"runs/{name}/run.yaml")["plugins"]


def test_export_says_what_it_cannot_write(here, refused):
    refused(2, "export", "runs/student", "--to", "diffusers", *PLUGIN, says="lab_net")


class TestWithoutThePlugin:
    """What is noted is told, and never imported."""

    @pytest.mark.parametrize(
        "words",
        [
            ("sample", "runs/student", "--out", "z.png"),
            ("evaluate", "runs/student"),
            ("inspect", "runs/student"),
            ("export", "runs/student", "--to", "diffusers"),
        ],
        ids=lambda words: words[0],
    )
    def test_models(self, here, refused, words):
        plugins._loaded.clear()
        line = refused(2, *words, says=["lab_net", "made with lab_outside.py: give --plugin PATH"])
        assert "digits" not in line

    @pytest.mark.parametrize("verb", ["train", "plan"])
    def test_run_files(self, here, fewstep, verb):
        plugins._loaded.clear()
        ended = fewstep(verb, "runs/teacher/run.yaml")
        assert ended.code == 2
        lines = ended.err.splitlines()
        assert len(lines) == 5
        for line in lines:
            assert "made with lab_outside.py: give --plugin PATH" in line

    def test_what_is_replaced_needs_no_plugin(self, here, done):
        """The run file notes more than the run still needs."""
        words = ("method.density=log_normal", "trainer.schedule=constant", "data=digits")
        done(
            *("train", "runs/teacher/run.yaml", "name=mended", *words, "trainer.optimizer=sgd"),
            *(
                "teacher.network={kind: unet, channels: 8, multipliers: [1], blocks: 1,"
                " attention: [], head_channels: 8, groups: 4}",
            ),
        )
        assert "plugins" not in read_yaml(here / "runs/mended/run.yaml")
        assert load(here / "runs/mended").denoiser.network.spec.channels == 8


def test_words_of_the_option(refused):
    refused(2, "inspect", "digits_teacher", "--plugin", says="--plugin needs a file or a module")
    refused(2, "inspect", "digits_teacher", "--plugin", "gone.py", says="no plug-in gone.py")
    Path("broken.py").write_text("import nosuchmodule")
    refused(
        2,
        *("inspect", "digits_teacher", "--plugin", "broken.py"),
        says=["broken.py cannot be imported", "nosuchmodule"],
    )
