"""Two processes that are stopped, killed or hang: both end, what is on the disk is whole, nobody
goes on alone.

Where torchrun itself has no part in it the two are forked, which takes no time: the parent has
imported torch already.
"""

import contextlib
import dataclasses
import functools
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from tests.cli.conftest import LOOP, TEACHER
from tests.processes.checks import fewstep
from tests.processes.launch import memory, torchrun
from tests.processes.measuring import furthest, of_logs
from tests.said import beside_summary
from tests.training.tiny import StopError, stop_at

from fewstep.cli import train
from fewstep.cli.configure import configured
from fewstep.cli.main import main
from fewstep.data.digits import Digits
from fewstep.files import load_tensors
from fewstep.methods.diffusion import Diffusion
from fewstep.models.source import Fresh
from fewstep.models.unet import UNet
from fewstep.run import Run, distil
from fewstep.training.checkpoint import Checkpoints
from fewstep.training.config import TrainerConfig
from fewstep.training.log import read_log
from fewstep.training.optimizers import Sgd
from fewstep.training.step import Step
from fewstep.yaml import to_yaml

pytestmark = pytest.mark.processes

LIMIT = 60.0
TINY = UNet(channels=8, multipliers=(1,), blocks=1, attention=(), head_channels=8, groups=4)


@pytest.fixture
def folder():
    with memory() as one:
        yield one


def run_of(steps=40, **chosen):
    """A whole run in milliseconds per step; no two steps are equal."""
    options: dict[str, Any] = {
        "batch": 8,
        "optimizer": Sgd(lr=0.05),
        "device": "cpu",
        "save_every": 2,
        "log_every": 1,
    }
    options |= {"health_every": 0, "ema": (0.5,), "steps": steps, "timeout": 30.0}
    data, trainer = Digits(split="all", limit=20), TrainerConfig(**options | chosen)
    return Run(data, Diffusion(), Fresh(network=TINY), trainer=trainer)


@dataclasses.dataclass
class Child:
    """One of two forked processes. steps: how many it has ended, as far as the parent has read."""

    rank: int
    pid: int
    reader: int
    steps: int = 0
    code: int | None = None
    ended: float = 0.0

    def read(self, beside=None) -> None:
        while select.select([self.reader], [], [], 0)[0] and (heard := os.read(self.reader, 4096)):
            self.steps += len(heard)

    def over(self) -> bool:
        """Whether it has ended; sets `code`, negative for a signal."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code, self.ended = os.waitstatus_to_exitcode(status), time.monotonic()
                self.read()
        return self.code is not None

    def kill(self, number: int) -> None:
        if not self.over():
            os.kill(self.pid, number)


@contextlib.contextmanager
def pair(act):
    """Two processes that meet and call act(rank, writer); killed behind the block."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    children = []
    try:
        for rank in range(2):
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                live(act, rank, port, writer)
            os.close(writer)
            children.append(Child(rank, pid, reader))
        yield children
    finally:
        for child in children:
            child.kill(signal.SIGKILL)
            if not child.over():
                child.code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
            os.close(child.reader)


def live(act, rank, port, writer):
    """What a forked process does; it never returns."""
    code = 1
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        torch.set_num_threads(1)
        act(rank, writer)
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def carried_out(run, folder):
    """The run, by both; each step takes 10 ms at least, and is told."""

    def act(rank, writer):
        def look(seen):
            os.write(writer, b".")
            time.sleep(0.01)

        distil(run, folder, observers=[look])

    return act


def until(true, what):
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < LIMIT, what
        time.sleep(0.005)


def reach(children, step):
    def far():
        for child in children:
            child.read()
            assert not child.over(), f"process {child.rank} ended with {child.code}"
        return all(child.steps >= step for child in children)

    until(far, f"step {step} was not reached")


def newest(folder):
    """The newest checkpoint that verifies; a damaged one fails the test."""
    return Checkpoints(folder / "checkpoints", say=pytest.fail, writes=False).newest()


def test_a_signal_to_one_process_stops_both_behind_the_same_step(folder):
    run = run_of()
    distil(run, folder / "one")  # first: what it imports, the two need not import again
    with pair(carried_out(run, folder / "run")) as children:
        reach(children, 5)
        children[1].kill(signal.SIGTERM)
        until(lambda: all(child.over() for child in children), "the two did not stop")
        assert [child.code for child in children] == [143, 143]
        assert children[0].steps == children[1].steps < 40
    step = children[0].steps
    status = json.loads((folder / "run" / "status.json").read_text())
    assert status.pop("seconds") > 0
    assert status.pop("threads") == 1
    assert status == {"state": "stopped", "step": step, "steps": 40, "reason": "signal 15"}
    assert newest(folder / "run") == step
    said = []
    assert not distil(run, folder / "run", say=said.append).already  # in one process
    setting, goes_on = said
    assert setting.startswith("going on in another setting (")
    assert goes_on.startswith(f"goes on behind step {step} of ")
    assert (
        of_logs(read_log(folder / "one" / "log.jsonl"), read_log(folder / "run" / "log.jsonl"))
        < 1e-4
    )
    nets = [
        load_tensors(folder / name / "student" / "model.safetensors") for name in ("one", "run")
    ]
    assert furthest({"": nets[0]}, {"": nets[1]}, "") < 1e-4


def assert_nothing_alone(folder, children):
    """The newest checkpoint is whole, and of a step that both were in."""
    step = newest(folder)
    assert step is not None
    assert step <= min(child.steps for child in children) + 1
    assert abs(children[0].steps - children[1].steps) <= 1
    status = json.loads((folder / "status.json").read_text())
    if children[0].code == 1:  # the leading one had time to say it
        assert (status["state"], status["reason"]) == (
            "failed",
            "another process ended or was silent",
        )
    else:
        assert status["state"] == "running"


@pytest.mark.parametrize("killed", [0, 1])
def test_where_one_is_killed_the_other_ends(folder, killed):
    with pair(carried_out(run_of(steps=2000), folder / "run")) as children:
        dead, other = children[killed], children[1 - killed]
        reach(children, 5)
        dead.kill(signal.SIGKILL)
        began = time.monotonic()
        until(lambda: dead.over() and other.over(), "the other did not end")
        assert dead.code == -signal.SIGKILL
        assert other.code == 1
        assert other.ended - began < 5
        assert_nothing_alone(folder / "run", children)


def by_command(run, folder):
    """The same through the command line: `fewstep train run.yaml`, in the folder."""
    folder.mkdir()
    (folder / "run.yaml").write_text(to_yaml(run.dump()))

    def act(rank, writer):
        def look(seen):
            os.write(writer, b".")
            time.sleep(0.01)

        os.chdir(folder)
        sys.stdout = sys.stderr = Path(f"{rank}.txt").open("w", buffering=1)  # noqa: SIM115
        with mock.patch.object(train, "distil", functools.partial(distil, observers=[look])):
            main(["train", "run.yaml", "name=run"])

    return act


def test_where_one_hangs_or_dies_the_other_ends(folder):
    """Each of the two hangs once, and dies once, side by side: all wait for the same 10 seconds."""
    run = run_of(steps=2000, timeout=10.0)
    ways = [(number, one) for number in (signal.SIGSTOP, signal.SIGKILL) for one in range(2)]
    homes = [folder / f"{number.name} {one}" for number, one in ways]
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(pair(by_command(run, home))) for home in homes]
        for children in pairs:
            reach(children, 5)
        began = time.monotonic()
        for children, (number, one) in zip(pairs, ways):
            children[one].kill(number)
        others = [children[1 - one] for children, (_, one) in zip(pairs, ways)]
        until(lambda: all(other.over() for other in others), "the others did not end")
        assert [other.code for other in others] == [1] * 4
        assert all(other.ended - began < 10 + 5 for other in others)
        assert all(other.ended - began > 5 for other in others[:2])
        for children, home, (number, one) in zip(pairs, homes, ways):
            said = (home / f"{1 - one}.txt").read_text().splitlines()[-1]
            assert "another process ended, or was silent for trainer.timeout seconds" in said
            if number == signal.SIGSTOP:  # the one that was away does not go on by itself
                children[one].kill(signal.SIGCONT)
            until(children[one].over, "the one that hung, or was killed, did not end")
            assert children[one].code == (1 if number == signal.SIGSTOP else -number)
            assert_nothing_alone(home / "runs" / "run", children)


CONSOLE = Path(sys.executable).with_name("fewstep")


def test_a_signal_to_torchrun_stops_both_with_a_checkpoint(folder, monkeypatch):
    """The console script; what it did so far, and what one process does from there, is what one
    process does.
    """
    monkeypatch.chdir(folder)
    monkeypatch.setattr("fewstep.report.run_report.curves", lambda *_, **__: "<svg></svg>")
    assert fewstep(*TEACHER, "name=tiny")[0] == 0
    words = [
        "digits_cd",
        "data.limit=64",
        *LOOP[1:],
        "trainer.save_every=100",
        "trainer.log_every=1",
    ]
    words += [
        "trainer.steps=400",
        "trainer.schedule.warmup=0",
        "trainer.optimizer.eps=1.0e-5",
        "teacher=runs/tiny",
    ]
    with torchrun("--no-python", CONSOLE, "train", *words, "name=run", cwd=folder) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("run: step 3 of"):
                process.send_signal(signal.SIGTERM)
        assert process.wait(30) != 0, said
    home = folder / "runs" / "run"
    lines = read_log(home / "log.jsonl")
    status = json.loads((home / "status.json").read_text())
    assert status.pop("seconds") > 0
    assert status.pop("threads") == 1
    assert status == {
        "state": "stopped",
        "step": len(lines),
        "steps": 400,
        "reason": "signal 15",
    }, said
    assert 3 <= len(lines) < 400
    assert newest(home) == len(lines)
    heard = []
    for name, say in (("one", pytest.fail), ("run", heard.append)):
        run, at = configured(words[0], [*words[1:], f"name={name}"])
        with pytest.raises(StopError):
            distil(run, at, observers=[stop_at(len(lines) + 2)], say=say)
    setting, goes_on = heard
    assert setting.startswith("going on in another setting (")
    assert goes_on.startswith("goes on behind step ")
    one, two = (read_log(folder / "runs" / name / "log.jsonl") for name in ("one", "run"))
    assert one[: len(lines)] != []
    assert of_logs(one[: len(lines)], lines) < 1e-5
    assert of_logs(one, two) < 1e-5


def test_an_error_of_the_configuration_is_one_line(folder):
    with torchrun(
        "--no-python", CONSOLE, "train", "digits_cd", "trainer.stepz=4", cwd=folder
    ) as process:
        said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 1  # torchrun's own
    assert [line for line in said.splitlines() if line.startswith("error: ")] == [
        "error: trainer.stepz: trainer_config has no option 'stepz'; did you mean steps? (got '4')"
    ]


@pytest.mark.parametrize("where", ["backward", "descend"])
def test_an_error_of_one_process_is_said_by_it(folder, monkeypatch, where):
    """Out of memory in the second process alone, where the two cannot agree on smaller parts any
    more.
    """
    monkeypatch.chdir(folder)
    run = to_yaml(run_of(sharding="full" if where == "backward" else "none").dump())
    Path("run.yaml").write_text(run)

    def act(rank, writer):
        sys.stdout = sys.stderr = Path(f"{rank}.txt").open("w", buffering=1)  # noqa: SIM115
        work = getattr(Step, where)

        def short(self, update, clock, *rest):
            if rank == 1 and clock.step == 3:
                raise MemoryError("can't allocate memory")
            return work(self, update, clock, *rest)

        setattr(Step, where, short)
        main(["train", "run.yaml", "name=run"])

    with pair(act) as children:
        until(lambda: any(one.over() for one in children), "none ended")
        time.sleep(0.5)
        for one in children:  # as torchrun does, when it has seen that one ended
            one.kill(signal.SIGTERM)
        until(lambda: all(one.over() for one in children), "one did not end")
        assert [one.code for one in children] == [-signal.SIGTERM, 5]
    said = [Path(f"{rank}.txt").read_text().splitlines() for rank in range(2)]
    assert [line for line in beside_summary(said[0]) if "step" not in line] == []
    assert said[1] == [
        "error: process 1: out of memory; a smaller trainer.micro_batch (or --batch) needs less"
    ]
