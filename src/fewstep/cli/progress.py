"""Progress: a bar with rate and remaining time on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fewstep.errors import rank


@contextmanager
def training_progress(steps: int, title: str) -> Iterator[Any]:
    """Gives the `watch` that the trainer calls: once per step, and with the numbers of a step now
    and then.

    None in a process that does not lead.
    """
    if rank():
        yield None
        return
    if not sys.stderr.isatty():
        started = time.monotonic()

        def write(done: int, line: Mapping[str, Any] | None) -> None:
            if line is not None:
                print(
                    f"{title}: step {done} of {steps}, {time.monotonic() - started:.0f} s, "
                    f"{_numbers(line)}",
                    flush=True,
                )

        yield write
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(
        *columns, TextColumn("{task.fields[numbers]}"), console=Console(stderr=True)
    ) as progress:
        task = progress.add_task(title, total=steps, numbers="")

        def move(done: int, line: Mapping[str, Any] | None) -> None:
            progress.update(task, completed=done)
            if line is not None:
                progress.update(task, numbers=_numbers(line))

        yield move


def _numbers(line: Mapping[str, Any]) -> str:
    left_out = ("step", "rate", "skipped")
    return ", ".join(
        f"{k} {v:.4g}" for k, v in line.items() if k not in left_out and not k.startswith("norm.")
    )
