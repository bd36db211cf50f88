"""The numbers of the log in TensorBoard, where that package is installed."""

import importlib.util
from pathlib import Path
from typing import Any

from fewstep.training.seen import Seen


def check_tensorboard() -> None:
    """ValueError with the remedy where the package is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError("trainer.tensorboard=true needs a package: pip install tensorboard")


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
