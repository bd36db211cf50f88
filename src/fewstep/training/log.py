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
        tensors: list[Tensor] = []
        for _, values in self._waiting:
            tensors += [v.detach().float() for v in values.values() if isinstance(v, Tensor)]
        # One wait for all of them.
        read = iter(torch.stack(tensors).tolist() if tensors else [])
        lines: list[dict[str, Any]] = []
        for step, values in self._waiting:
            line: dict[str, Any] = {"step": step}
            for key, value in values.items():
                number = next(read) if isinstance(value, Tensor) else value
                line[key] = float(f"{number:.6g}")
            lines.append(line)
        self._waiting.clear()
        if lines:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_text(lines))
            # Before the checkpoint that follows: a resumed run needs every line up to it.
            sync(self.path)
        return lines


def _text(lines: list[dict[str, Any]]) -> str:
    """JSON knows no NaN or infinity: null stands for them."""
    text = ""
    for line in lines:
        finite = {k: v if math.isfinite(v) else None for k, v in line.items()}
        text += json.dumps(finite) + "\n"
    return text


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log, null as NaN; a torn last line, which a kill leaves, is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        lines.append({k: math.nan if v is None else v for k, v in line.items()})
    return lines
