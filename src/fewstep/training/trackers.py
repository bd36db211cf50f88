"""The numbers of the log in TensorBoard and in Weights & Biases, where these are installed."""

import importlib
import importlib.util
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.files import write_bytes
from fewstep.training.config import TrainerConfig
from fewstep.training.seen import Observer, Seen

WANDB_ID = "wandb_id.txt"
"""The file of a run that says which one it is there."""


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


class TensorBoard:
    """Writes every step that the log has read; `norm.student` becomes `norm/student`.

    A run that goes on takes what an earlier life wrote of these steps out of the curves.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._writer: Any = None

    def __call__(self, seen: Seen) -> None:
        for line in seen.lines:
            numbers = dict(line)
            step = int(numbers.pop("step"))
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self.folder), purge_step=step)
            for key, value in numbers.items():
                self._writer.add_scalar(key.replace(".", "/"), value, step)
        if seen.lines:
            self._writer.flush()
        if seen.ends and self._writer is not None:
            self._writer.close()


class Wandb:
    """Logs every step that the log has read to Weights & Biases, under the names of the log.

    Its own variables say where to (WANDB_PROJECT, else fewstep) and how (WANDB_MODE=offline writes
    into the run's folder alone). A run that goes on is the same one there.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any]):
        self.folder, self.run = folder, run
        self._writer: Any = None

    def __call__(self, seen: Seen) -> None:
        for line in seen.lines:
            numbers = dict(line)
            step = int(numbers.pop("step"))
            if self._writer is None:
                self._writer = self._begun()
            self._writer.log(numbers, step=step)
        if seen.ends and self._writer is not None:
            self._writer.finish()

    def _begun(self) -> Any:
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
