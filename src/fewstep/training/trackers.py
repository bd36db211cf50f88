"""The numbers of the log in TensorBoard and in Weights & Biases, where these are installed."""

import importlib
import importlib.util
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.files import write_bytes
from fewstep.training.config import TrainerConfig
from fewstep.training.run_folder import WANDB_ID
from fewstep.training.seen import Observer, Seen


def check_trackers(config: TrainerConfig) -> None:
    """ValueError with the remedy where a package is missing."""
    for name in ("tensorboard", "wandb"):
        if getattr(config, name) and importlib.util.find_spec(name) is None:
            raise ValueError(f"trainer.{name}=true needs a package: pip install {name}")


def trackers(config: TrainerConfig, folder: Path, run: Mapping[str, Any]) -> list[Observer]:
    """Those that the run asks for. run: its options, as plain data."""
    found: list[Observer] = []
    if config.tensorboard:
        found.append(TensorBoard(folder / "tensorboard"))
    if config.wandb:
        found.append(Wandb(folder, run))
    return found


class Tracker(ABC):
    """Hands every step that the log has read to a program of others, which it begins with the first
    of them and ends with the run.
    """

    def __init__(self) -> None:
        self._writer: Any = None

    def __call__(self, seen: Seen) -> None:
        for line in seen.lines:
            numbers = dict(line)
            step = int(numbers.pop("step"))
            if self._writer is None:
                self._writer = self.begun(step)
            self.write(self._writer, numbers, step)
        if seen.ends and self._writer is not None:
            self.end(self._writer)

    @abstractmethod
    def begun(self, step: int) -> Any:
        """What is written to, from this step on."""

    @abstractmethod
    def write(self, writer: Any, numbers: Mapping[str, float], step: int) -> None:
        """The numbers of a step."""

    @abstractmethod
    def end(self, writer: Any) -> None:
        """Nothing more will come."""


class TensorBoard(Tracker):
    """Under the names of the log; `norm.student` becomes `norm/student`.

    A run that goes on takes what an earlier life wrote of these steps out of the curves.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def begun(self, step: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.folder), purge_step=step)

    def write(self, writer: Any, numbers: Mapping[str, float], step: int) -> None:
        for key, value in numbers.items():
            writer.add_scalar(key.replace(".", "/"), value, step)
        writer.flush()

    def end(self, writer: Any) -> None:
        writer.close()


class Wandb(Tracker):
    """Weights & Biases, under the names of the log.

    Its own variables say where to (WANDB_PROJECT, else fewstep) and how (WANDB_MODE=offline writes
    into the run's folder alone). A run that goes on is the same one there.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any]):
        super().__init__()
        self.folder, self.run = folder, run

    def begun(self, step: int) -> Any:
        wandb = importlib.import_module("wandb")
        file = self.folder / WANDB_ID
        if not file.is_file():
            write_bytes(file, secrets.token_hex(4).encode())
        return wandb.init(
            project=None if os.environ.get("WANDB_PROJECT") else "fewstep",
            name=self.folder.name,
            id=file.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(self.folder),
            config=dict(self.run),
        )

    def write(self, writer: Any, numbers: Mapping[str, float], step: int) -> None:
        writer.log(dict(numbers), step=step)

    def end(self, writer: Any) -> None:
        writer.finish()
