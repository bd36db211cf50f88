"""log.jsonl: one line per step, each step exactly once however often the run was interrupted."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.files import sync, write_bytes


class Log:
    """Collects scalars on the device and writes them in blocks, so that no step waits for the
    device.
    """

    def __init__(self, path: Path, start: int):
        self.path = path
        kept = [line for line in read_log(path) if line["step"] <= start]
        write_bytes(path, _text(kept).encode())
        self._waiting: list[tuple[int, dict[str, Tensor | float]]] = []

    def add(self, step: int, values: Mapping[str, Tensor | float]) -> None:
        """Numbers of one step, counted from 1; tensors are read later."""
        self._waiting.append((step, dict(values)))

    def flush(self) -> list[dict[str, Any]]:
        """Writes what has collected and returns it."""
        lines: list[dict[str, Any]] = []
        tensors = [
            v for _, values in self._waiting for v in values.values() if isinstance(v, Tensor)
        ]
        read = iter(torch.stack([t.detach().float() for t in tensors]).tolist() if tensors else [])
        for step, values in self._waiting:
            numbers = {k: next(read) if isinstance(v, Tensor) else v for k, v in values.items()}
            lines.append({"step": step} | {k: float(f"{v:.6g}") for k, v in numbers.items()})
        self._waiting.clear()
        if lines:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_text(lines))
            sync(
                self.path
            )  # before the checkpoint that follows: a resumed run needs every line up to it
        return lines


def _text(lines: list[dict[str, Any]]) -> str:
    """JSON knows no NaN or infinity: null stands for them."""
    finite = [{k: v if math.isfinite(v) else None for k, v in line.items()} for line in lines]
    return "".join(json.dumps(line) + "\n" for line in finite)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log, null as NaN; a torn last line, which a kill leaves, is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append({k: math.nan if v is None else v for k, v in json.loads(text).items()})
        except json.JSONDecodeError:
            break
    return lines
