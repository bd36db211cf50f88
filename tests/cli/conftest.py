"""The command line in this process, and tiny runs that it trained once."""

import json
import shutil
from typing import NamedTuple

import numpy as np
import pytest

from fewstep.cli.main import main
from fewstep.models.unet import UNetModule

# A network and a run so small that a test can train it: 3 steps of 8 images.
LOOP = (
    "trainer.steps=3",
    "trainer.batch=8",
    "trainer.health_every=0",
    "trainer.save_every=1",
    "trainer.device=cpu",
)
NETWORK = (
    "teacher.network.channels=8",
    "teacher.network.multipliers=[1]",
    "teacher.network.blocks=1",
    "teacher.network.attention=[]",
    "teacher.network.head_channels=8",
    "teacher.network.groups=4",
)
# Steps so large that the weights of two averages, or of two runs, make images that differ; and a
# short sampler.
STRIDES = (
    "trainer.optimizer.lr=0.02",
    "trainer.schedule.warmup=0",
    "trainer.ema=[0.5,0.9995]",
    "trainer.ema_warmup=false",
    "method.solver_steps=4",
)
TEACHER = ("train", "digits_teacher", *NETWORK, "data.limit=64", *LOOP, *STRIDES)
STUDENT = (
    "train",
    "digits_cd",
    "teacher=runs/tiny",
    "data.limit=64",
    *LOOP,
    "method=easy_consistency",
    "method.solver=heun",
)


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def fewstep(capsys):
    """Runs the command line; an error that is not turned into a message fails the test with its
    traceback.
    """

    def call(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        return Ended(ended.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def refused(fewstep):
    """Runs a command that must end with one line on standard error; gives the line."""

    def call(code, *words, says=()):
        ended = fewstep(*words)
        lines = ended.err.splitlines()
        assert ended.code == code, ended
        assert len(lines) == 1, ended.err
        assert lines[0].startswith("error: ")
        assert len(lines[0]) < 500, f"{len(lines[0])} characters are no line that somebody reads"
        for text in [says] if isinstance(says, str) else says:
            assert text in lines[0], f"{text!r} is not in {lines[0]!r}"
        return lines[0]

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with the finished runs `tiny` (a teacher, with a second average) and `cd` (its
    student).
    """
    home = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for words in ((*TEACHER, "name=tiny"), (*STUDENT, "name=cd")):
            with pytest.raises(SystemExit) as ended:
                main(list(words))
            assert ended.value.code == 0
    return home / "runs"


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    """Every test in a folder of its own, and without the drawing of curves, which takes longer than
    the training.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fewstep.report.run_report.curves", lambda *_, **__: "<svg></svg>")


@pytest.fixture
def runs(trained, tmp_path):
    """A copy of the finished runs, as `runs` in the current folder."""
    return shutil.copytree(trained, tmp_path / "runs")


@pytest.fixture
def unfinished(runs):
    """A run that was stopped behind step 2 of 3."""
    half = shutil.copytree(runs / "tiny", runs / "half")
    shutil.rmtree(half / "student")
    shutil.rmtree(half / "checkpoints" / "step-00000003")
    (half / "status.json").write_text(
        '{"state": "stopped", "step": 2, "steps": 3, "reason": "signal 15"}'
    )
    return half


@pytest.fixture
def asleep(monkeypatch):
    """No network may be evaluated: what is wrong with a command is found before its work, not
    behind it.
    """

    def forward(*_, **__):
        raise AssertionError("work was done before the mistake was found")

    monkeypatch.setattr(UNetModule, "forward", forward)


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
