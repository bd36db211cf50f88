"""The folder of a run: its run file, status, lock, and what a killed run left in it."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fewstep.errors import DivergedError, RefusedError, connection_lost
from fewstep.files import read_json, remove, remove_leftovers, write_bytes, write_json
from fewstep.training.checkpoint import Checkpoints
from fewstep.training.config import difference
from fewstep.training.lock import Lock
from fewstep.training.log import read_log
from fewstep.training.processes import World
from fewstep.yaml import read_yaml, to_yaml

RESULTS = "results.json"
"""The file of what was measured of what the run has made."""
FOLDERS = ("checkpoints", "samples", "tensorboard", "wandb", "index")
"""In which a run writes file by file."""
WANDB_ID = "wandb_id.txt"
"""The file that says which run it is at Weights & Biases."""


class RunFolder:
    """Where a run keeps what it is and how far it is. The leading process of `world` writes; in
    the others writing does nothing.

    renewed: gives the run that an older fewstep wrote as this one writes it. threads: with which it
    trains, noted in the status where they are known.
    """

    def __init__(
        self,
        path: Path,
        world: World | None = None,
        renewed: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ):
        self.path, self.world, self.renewed = path, world or World(), renewed
        self.threads: int | None = None
        self._since: float | None = None  # the first status of this process
        self._before = 0.0

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
        """No other run uses the folder within the block; what was made for one that never began is
        removed again.

        RefusedError where another one does, ValueError where a folder in it is a link.
        """
        lock = Lock(self.path)
        self.world.on_leader(lock.take)
        try:
            self.world.on_leader(self._check_links)
            if (self.path / "run.yaml").is_file():
                self.clean()
            yield
        finally:
            if lock.taken and {name.name for name in self.path.iterdir()} <= {".lock", "index"}:
                lock.unmake()
            lock.release()

    def _check_links(self) -> None:
        for name in FOLDERS:
            if (self.path / name).is_symlink():
                raise ValueError(
                    f"{self.path / name} is a link, which is not followed: remove it (the run's "
                    f"whole folder may be one)"
                )

    def finished(self, run: dict[str, Any], may_change: Mapping[str, Sequence[str]]) -> bool:
        """Whether the folder holds this run, at its end. may_change: options, by part of the run,
        that a continued run may have changed; with another `kind` of a part, where that is among
        them, what both kinds know is compared. More steps make the same run longer.

        RefusedError where it holds another run.
        """
        old = self._run()
        if old is None:
            return False
        kept, asked = _without(old, run, may_change), _without(run, old, may_change)
        if longer := self.longer(run):
            kept["trainer"] = {**kept["trainer"], "steps": longer}
        if kept != asked:
            raise RefusedError(
                f"{self.path} holds a run with another configuration: {difference(kept, asked)}; "
                f"`fewstep train {self.path}` goes on with its own; another name= makes another "
                f"run, --restart begins again"
            )
        return self.at_its_end(run["trainer"]["steps"])

    def at_its_end(self, steps: int) -> bool:
        """Whether the status says so, of so many steps."""
        status = self.status()
        return status.get("state") == "finished" and status.get("steps") == steps

    def changed(self, run: dict[str, Any], places: Mapping[str, Sequence[str]]) -> tuple[str, int]:
        """`moved` and `longer`."""
        return self.moved(run, places), self.longer(run)

    def longer(self, run: dict[str, Any]) -> int:
        """The steps of a run that has more of them than the one that the folder holds; 0 for
        others.
        """
        old = self._run() or run
        before, now = (one["trainer"]["steps"] for one in (old, run))
        return int(now) if now > before else 0

    def moved(self, run: dict[str, Any], places: Mapping[str, Sequence[str]]) -> str:
        """Which places, options by part of the run, the folder's run has otherwise; '' for none."""
        old = self._run() or run
        found = []
        for part, names in places.items():
            before, now = old.get(part) or {}, run.get(part) or {}
            for name in names:
                if before.get(name) != now.get(name):
                    found.append(difference(before.get(name), now.get(name), f"{part}.{name}"))
        return ", ".join(found)

    def _run(self) -> dict[str, Any] | None:
        """The run that the folder holds; None where it holds none. RefusedError where its run file
        is none.
        """
        path = self.path / "run.yaml"
        if not path.is_file():
            return None
        old = read_yaml(path)
        if not isinstance(old, dict) or "data" not in old:
            raise RefusedError(f"{path} is no run file; --restart begins again")
        old.pop("plugins", None)  # told, not part of what is asked
        return self.renewed(old)

    @contextmanager
    def recorded(self, steps: int) -> Iterator[None]:
        """However the block ends before the run does, status.json says it.

        Where the run is refused everything stays as it was.
        """
        try:
            yield
        except RefusedError:
            raise
        except BaseException as error:
            with contextlib.suppress(OSError):  # of a full disk, which is the error itself
                self._record(error, steps)
            raise

    def _record(self, error: BaseException, steps: int) -> None:
        step = max((line["step"] for line in read_log(self.log)), default=0)
        code = error.code if isinstance(error, SystemExit) else 0
        if isinstance(error, KeyboardInterrupt):
            code = 130
        if isinstance(code, int) and code > 128:
            self.write_status("stopped", step, steps, f"signal {code - 128}")
            return
        reason = " ".join(str(error).split()) or type(error).__name__
        if connection_lost(error):
            reason = "another process ended or was silent"
        state = "diverged" if isinstance(error, DivergedError) else "failed"
        self.write_status(state, step, steps, reason)

    def begin(self, run: dict[str, Any], exports: Sequence[str], restart: bool) -> None:
        """Writes the run file. restart: behind removing all that the folder holds of a run."""
        if not self.world.is_leader:
            return
        if restart:
            for name in ("samples", "report", RESULTS, WANDB_ID, *exports):
                remove(self.path / name)
            # The status first: a restart that is cut must not pass for the old run.
            (self.path / "status.json").unlink(missing_ok=True)
            self.log.unlink(missing_ok=True)
            Checkpoints(self.checkpoints).discard_all()
        write_bytes(self.path / "run.yaml", to_yaml(run).encode())

    def clean(self) -> None:
        """Removes what a killed process was writing."""
        if self.world.is_leader:
            for folder in (self.path, self.path / "samples", self.path / "index"):
                remove_leftovers(folder, own=True)

    def write_status(self, state: str, step: int, steps: int, reason: str = "") -> None:
        """How far the run is: running, stopped, diverged, failed, trained or finished; how many
        seconds it took so far, in all processes that went on with it, and with how many threads.
        """
        if not self.world.is_leader:
            return
        status: dict[str, Any]
        status = {"state": state, "step": step, "steps": steps, "reason": reason}
        old = self.status()
        if self._since is None:
            self._since = time.monotonic()
            self._before = float(old.get("seconds", 0.0))
        status["seconds"] = round(self._before + time.monotonic() - self._since, 1)
        status["threads"] = old.get("threads") if self.threads is None else self.threads
        write_json(self.path / "status.json", status)

    def status(self) -> dict[str, Any]:
        """What was noted last; nothing where that was nothing, or is damaged."""
        try:
            found = read_json(self.path / "status.json")
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_diverged(self, found: dict[str, Any]) -> None:
        """What is needed to look into the steps that ended the run."""
        if self.world.is_leader:
            write_json(self.path / "diverged.json", found)


def _without(
    run: dict[str, Any], other: dict[str, Any], may_change: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """The run without the options that may differ from those of the other one."""
    left = dict(run)
    for part, names in may_change.items():
        one, two = run.get(part), other.get(part)
        if not isinstance(one, Mapping) or not isinstance(two, Mapping):
            continue
        another = "kind" in names and one.get("kind") != two.get("kind")
        left[part] = {k: v for k, v in one.items() if k not in names and (k in two or not another)}
    return left
