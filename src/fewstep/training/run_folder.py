"""The folder of a run: its run file, status, lock, and what a killed run left in it."""

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from fewstep.errors import RefusedError
from fewstep.files import read_json, remove_leftovers, write_bytes, write_json
from fewstep.training.checkpoint import Checkpoints
from fewstep.training.config import difference
from fewstep.training.processes import World
from fewstep.yaml import read_yaml, to_yaml


class RunFolder:
    """Where a run keeps what it is and how far it is. The leading process of `world` writes; in
    the others writing does nothing.
    """

    def __init__(self, path: Path, world: World | None = None):
        self.path, self.world = path, world or World()

    @property
    def log(self) -> Path:
        """One line of numbers per step."""
        return self.path / "log.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """No other run uses the folder within the block; one that never began is removed again.

        RefusedError where another one does.
        """
        lock = Lock(self.path)
        self.world.on_leader(lock.take)
        try:
            yield
        finally:
            if lock.taken and {path.name for path in self.path.iterdir()} <= {".lock", "index"}:
                shutil.rmtree(self.path)
            lock.release()

    def finished(self, run: dict[str, Any], may_change: Mapping[str, Sequence[str]]) -> bool:
        """Whether the folder holds this run, at its end. may_change: options, by part of the run,
        that a continued run may have changed.

        RefusedError where it holds another run.
        """
        path = self.path / "run.yaml"
        if not path.is_file():
            return False
        old = read_yaml(path)
        if not isinstance(old, dict) or any(not isinstance(old.get(k), dict) for k in may_change):
            raise RefusedError(f"{path} is no run file; --restart begins again")
        old.pop("plugins", None)  # told, not part of what is asked
        kept, asked = _without(old, may_change), _without(run, may_change)
        if kept != asked:
            raise RefusedError(
                f"{self.path} holds a run with another configuration: {difference(kept, asked)}; "
                "choose another name=, or --restart to begin again"
            )
        try:
            status = read_json(self.path / "status.json")
        except (FileNotFoundError, ValueError):
            return False
        return isinstance(status, dict) and status.get("state") == "finished"

    def begin(self, run: dict[str, Any], exports: Sequence[str], restart: bool) -> None:
        """Writes the run file. restart: behind removing all that the folder holds of a run."""
        if not self.world.is_leader:
            return
        if restart:
            for name in ("samples", *exports):
                shutil.rmtree(self.path / name, ignore_errors=True)
            # The status first: a restart that is cut must not pass for the old run.
            (self.path / "status.json").unlink(missing_ok=True)
            self.log.unlink(missing_ok=True)
            Checkpoints(self.checkpoints).discard_all()
        write_bytes(self.path / "run.yaml", to_yaml(run).encode())

    def clean(self) -> None:
        """Removes what a killed process was writing."""
        if self.world.is_leader:
            remove_leftovers(self.path)

    def write_status(self, state: str, step: int, steps: int, reason: str = "") -> None:
        """How far the run is: running, stopped, diverged, trained or finished."""
        if self.world.is_leader:
            status = {"state": state, "step": step, "steps": steps, "reason": reason}
            write_json(self.path / "status.json", status)

    def write_diverged(self, found: dict[str, Any]) -> None:
        """What is needed to look into the steps that ended the run."""
        if self.world.is_leader:
            write_json(self.path / "diverged.json", found)


def _without(run: dict[str, Any], may_change: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The run without the options that may change."""
    left = dict(run)
    for part, names in may_change.items():
        left[part] = {k: v for k, v in run[part].items() if k not in names}
    return left


class Lock:
    """One run per folder: an flock that dies with its process, so a killed run leaves no
    obstacle.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._file: TextIO | None = None

    @property
    def taken(self) -> bool:
        """Whether this object holds the folder."""
        return self._file is not None

    def take(self) -> None:
        """Holds the folder, which is made if need be. RefusedError where another one does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = (self.folder / ".lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise RefusedError(
                f"{self.folder} is in use by {holder}; wait for it or choose another name="
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Lets the next run in."""
        if self._file is not None:
            self._file.close()
            self._file = None
