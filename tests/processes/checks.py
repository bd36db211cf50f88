"""What two processes do, measured in one start of torchrun; test_processes.py judges the numbers.

    torchrun --standalone --nproc-per-node 2 -m tests.processes.checks FOLDER [CHECK …]

Both processes carry out every check, in the same order; FOLDER/values-RANK.json holds what each
measured, by check. The first exception ends all: FOLDER/failed-RANK.txt then says where.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tests.cli.conftest import LOOP, TEACHER
from tests.processes import equal_runs, going_on, meeting  # noqa: F401  # each adds its checks
from tests.processes.going_on import CUT
from tests.processes.measuring import (
    ALONE,
    CHECKS,
    COMMANDS,
    command,
    furthest,
    of_logs,
)
from tests.training.tiny import StopError, stop_at

import fewstep.training.processes as processes
from fewstep.cli import main as cli
from fewstep.cli.configure import configured
from fewstep.files import load_tensors
from fewstep.run import distil
from fewstep.training.log import read_log
from fewstep.training.processes import World, together

STUDENT = (
    "train",
    "digits_cd",
    "data.limit=64",
    *LOOP[1:],
    "trainer.steps=6",
    "trainer.health_every=3",
)
STUDENT += ("trainer.log_every=1", "trainer.schedule.warmup=0", "trainer.optimizer.eps=1.0e-5")


def fewstep(*words: str) -> tuple[int, str]:
    """The command line in this process: its exit code, and all that it printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            cli.main(words)
        except SystemExit as ended:
            return int(ended.code or 0), said.getvalue()
    raise AssertionError("the command line did not end")


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


@command
def by_command(world: World, folder: Path) -> dict[str, Any]:
    """`fewstep train digits_cd` in two processes, whole and from the middle of a run of one,
    against one process.
    """
    os.chdir(folder)
    teacher = f"teacher={folder}/runs/tiny"
    if world.is_leader:
        with environment(WORLD_SIZE="1"):
            assert fewstep(*TEACHER, "name=tiny")[0] == 0
            assert fewstep(*STUDENT, teacher, "name=one")[0] == 0
            run, half = configured("digits_cd", [*STUDENT[2:], teacher, "name=half"])
            with contextlib.suppress(StopError):
                distil(run, half, observers=[stop_at(CUT)])
            shutil.copytree(half, "runs/middle")  # as it was when the second process came
    ended = {name: fewstep(*STUDENT, teacher, f"name={name}") for name in ("two", "half")}
    waits: list[float] = []
    with mock.patch.object(
        cli, "patience", lambda error, ask=cli.patience: waits.append(ask(error)) or 0.0
    ):
        ended["refused"] = fewstep(*STUDENT, teacher, "name=two", "trainer.steps=5")
    found: dict[str, Any] = {
        name: {"code": code, "said": said.splitlines()} for name, (code, said) in ended.items()
    }
    found["refused"]["waits"] = waits
    if not world.is_leader:
        return found
    found["middle"] = len(read_log(Path("runs/middle/log.jsonl")))
    home = Path("runs/one")
    for name in ("two", "half"):
        other = Path("runs", name)
        here, there = (load_tensors(p / "student" / "model.safetensors") for p in (home, other))
        found[name] |= {
            "log": of_logs(read_log(home / "log.jsonl"), read_log(other / "log.jsonl")),
            "lines": len(read_log(other / "log.jsonl")),
            "student": furthest({"": here}, {"": there}, ""),
            "status": json.loads((other / "status.json").read_text()),
            "report": (other / "report.html").is_file(),
        }
    return found


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def main() -> None:
    home, names = Path(sys.argv[1]), sys.argv[2:] or [*CHECKS, *COMMANDS]
    torch.set_num_threads(1)
    values: dict[str, Any] = {}

    def measured(name: str, work: Callable[[World, Path], dict[str, Any]], world: World) -> None:
        began = time.monotonic()
        folder = home / name / "run"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            values[name] = work(world, folder) | {"seconds": round(time.monotonic() - began, 2)}
        except BaseException:
            (home / f"failed-{world.rank}.txt").write_text(f"{name}\n{traceback.format_exc()}")
            raise
        (home / f"values-{world.rank}.json").write_text(json.dumps(values, indent=1))

    with together(60.0) as world:
        for name in names:
            if name in CHECKS:
                measured(name, CHECKS[name], world)
        ports = world.on_leader(lambda: [free_port() for _ in range(8)])
    import fewstep.report.run_report as report

    report.curves = lambda *_, **__: "<svg></svg>"  # type: ignore[assignment]  # drawing takes longer than training
    meet = processes.together

    @contextlib.contextmanager
    def elsewhere(timeout: float) -> Iterator[World]:
        """A process can meet the others once per store; this gives each
        command a store of its own.
        """
        if os.environ["WORLD_SIZE"] == "1":
            yield ALONE
            return
        with (
            environment(MASTER_PORT=ports.pop(), TORCHELASTIC_USE_AGENT_STORE="False"),
            meet(timeout) as world,
        ):
            yield world

    import fewstep.run as runs

    runs.together = elsewhere
    for name in names:
        if name in COMMANDS:
            measured(name, COMMANDS[name], world)


if __name__ == "__main__":
    main()
