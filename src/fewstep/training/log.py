"""log.jsonl: one line per step, each step exactly once however often the run was interrupted."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.files import append_text, write_bytes


class Log:
    """Collects scalars on the device and writes them in blocks, so that no step waits for the
    device.

    start: the step that a run goes on from; lines of later ones are cut off. say: where it is told
    that lines up to there are lost, which stops no run.
    """

    def __init__(self, path: Path, start: int, say: Callable[[str], None] = print):
        self.path = path
        kept = [line for line in read_log(path) if line["step"] <= start]
        if lost := _missing([line["step"] for line in kept], start):
            say(f"{path} is damaged: the numbers of {lost} are lost; the run goes on")
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
            # Synced before the checkpoint that follows: a resumed run needs every line up to it.
            append_text(self.path, _text(lines))
        return lines


def _text(lines: list[dict[str, Any]]) -> str:
    """JSON knows no NaN or infinity: null stands for them."""
    text = ""
    for line in lines:
        finite = {k: v if math.isfinite(v) else None for k, v in line.items()}
        text += json.dumps(finite) + "\n"
    return text


def _missing(steps: list[int], start: int) -> str:
    """The steps up to `start` that are not there: `steps 3 to 8, 11`; empty where none is lost."""
    gaps = []
    for before, after in zip([0, *steps], [*steps, start + 1]):
        if after - before == 2:
            gaps.append(f"{before + 1}")
        elif after - before > 2:
            gaps.append(f"{before + 1} to {after - 1}")
    more = f" and {len(gaps) - 5} more gaps" if len(gaps) > 5 else ""
    return f"steps {', '.join(gaps[:5])}{more}" if gaps else ""


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log by their steps, null as NaN. What is no line of a log, as the torn last
    one that a kill leaves, is left out.
    """
    if not path.is_file():
        return []
    found: dict[int, dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        line = _line(text)
        if line is not None:
            found[line["step"]] = line
    return [found[step] for step in sorted(found)]


def _line(text: str) -> dict[str, Any] | None:
    """Named numbers with a step; None where the text is anything else."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or type(line.get("step")) is not int or line["step"] < 1:
        return None
    for key, value in line.items():
        if type(value) not in (int, float, type(None)) or abs(value or 0) > 1e308:
            return None
        if value is None:
            line[key] = math.nan
    return line
