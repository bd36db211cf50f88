"""Progress: a bar with rate and remaining time on a terminal or in a notebook, plain lines
elsewhere.
"""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fewstep.errors import rank
from fewstep.text import Unbroken, in_one_line, tell
from fewstep.training.seen import Observer, Seen


@contextmanager
def training_progress(steps: int, title: str, shown: bool | None = None) -> Iterator[Observer]:
    """Gives the observer that shows how far a run is, with the numbers that the log read last.

    shown: None for a bar where somebody can see one, else nothing; True for lines in that case;
    False for nothing. In a process that does not lead it shows nothing.
    """
    bar = (sys.stderr is not None and sys.stderr.isatty()) or _in_notebook()
    title = in_one_line(title)
    if rank() or shown is False or not (bar or shown):
        yield _nothing
    elif bar:
        with _bar(steps, title) as observer:
            yield observer
    else:
        yield _Lines(steps, title)


def _nothing(seen: Seen) -> None:
    """Shows nothing."""


class _Lines:
    def __init__(self, steps: int, title: str):
        self.steps, self.title = steps, title
        self.started = time.monotonic()

    def __call__(self, seen: Seen) -> None:
        if seen.lines:
            seconds = time.monotonic() - self.started
            tell(
                f"{self.title}: step {seen.done} of {self.steps}, {seconds:.0f} s, "
                f"{_numbers(seen.lines[-1])}"
            )


@contextmanager
def _bar(steps: int, title: str) -> Iterator[Observer]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}", markup=False),
    ]
    terminal: Any = Unbroken(sys.stderr)
    with Progress(*columns, console=Console(file=terminal)) as progress:
        task = progress.add_task(title, total=steps, numbers="")

        def move(seen: Seen) -> None:
            progress.update(task, completed=seen.done)
            if seen.lines:
                progress.update(task, numbers=_numbers(seen.lines[-1]))

        yield move


def _in_notebook() -> bool:
    """Whether a notebook's kernel runs this: it has imported IPython, and says so."""
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"


def _numbers(line: Mapping[str, Any]) -> str:
    left_out = ("step", "rate", "skipped")
    shown = []
    for key, value in line.items():
        if key not in left_out and not key.startswith("norm."):
            shown.append(f"{key} {value:.4g}")
    return ", ".join(shown)
