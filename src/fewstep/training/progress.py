"""Progress: a bar with rate and remaining time on a terminal or in a notebook, plain lines
elsewhere.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fewstep.errors import rank
from fewstep.models.request import LOOKING_ON, Answer
from fewstep.text import Unbroken, in_one_line, lasted, tell
from fewstep.training.seen import Observer, Seen
from fewstep.training.threads import unhindered

EVERY, SOON = 60.0, 5.0
"""Seconds between lines of long sampling, and those of steps that tell how long all take."""


@contextmanager
def training_progress(steps: int, title: str, shown: bool | None = None) -> Iterator[Observer]:
    """Gives the observer that shows how far a run is, with the numbers that the log read last.

    shown: None for a bar where somebody can see one, else nothing; True for lines in that case;
    False for nothing. In a process that does not lead it shows nothing.
    """
    title = in_one_line(title)
    if rank() or not looked_at(shown):
        yield _nothing
    elif _sees_bars():
        with _bar(steps, title) as observer:
            yield observer
    else:
        yield _Lines(steps, title)


def looked_at(shown: bool | None) -> bool:
    """Whether anybody looks on, in the words of `training_progress`."""
    return shown is not False and (bool(shown) or _sees_bars())


def _sees_bars() -> bool:
    return (sys.stderr is not None and sys.stderr.isatty()) or _in_notebook()


def _nothing(seen: Seen) -> None:
    """Shows nothing."""


class _Lines:
    """A line with the numbers whenever there are new ones; before, as soon as a few steps tell it,
    how long the run takes where that is more than a minute.
    """

    def __init__(self, steps: int, title: str):
        self.steps, self.title = steps, title
        self.started = time.monotonic()
        self.first: tuple[int, float] | None = None  # behind the first step, which is slower
        self.foretold = False

    def __call__(self, seen: Seen) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = seen.done, now
        elif not self.foretold and now - self.first[1] >= SOON:
            self.foretold = True
            of_step = (now - self.first[1]) / (seen.done - self.first[0])
            if (left := of_step * (self.steps - seen.done)) > EVERY:
                tell(f"{self.title}: {of_step:.3g} s a step, about {lasted(left)} left")
        if seen.lines:
            tell(
                f"{self.title}: step {seen.done} of {self.steps}, {now - self.started:.0f} s, "
                f"{_numbers(seen.lines[-1])}"
            )


@contextmanager
def sampling_shown() -> Iterator[None]:
    """Within the block making images shows a bar that goes when they are made, on a terminal, else
    a line now and then; with no more threads than are fast on this machine now.
    """
    seen = sys.stderr is not None and sys.stderr.isatty()
    token = None if rank() else LOOKING_ON.set(_sampling_bar if seen else _sampling_lines)
    try:
        with unhindered():
            yield
    finally:
        if token is not None:
            LOOKING_ON.reset(token)


@contextmanager
def _sampling_lines(answer: Answer) -> Iterator[Callable[[Any], None]]:
    """A line a minute, for who reads them later."""
    begun = last = time.monotonic()
    done, total = 0, math.ceil(answer.num / answer.batch) * answer.sampler.steps

    def move(seen: Any) -> None:
        nonlocal done, last
        done, now = done + 1, time.monotonic()
        if now - last >= EVERY:
            last, left = now, (now - begun) * (total - done) / done
            tell(f"{answer.num:,} images: {done / total:.0%}, {lasted(left)} left")

    yield move


@contextmanager
def _sampling_bar(answer: Answer) -> Iterator[Callable[[Any], None]]:
    from rich.console import Console

    total = math.ceil(answer.num / answer.batch) * answer.sampler.steps
    terminal: Any = Unbroken(sys.stderr)
    title = f"{answer.num:,} images"
    with bar_on(Console(file=terminal), title, total, transient=True) as progress:
        yield lambda seen: progress.advance(progress.task_ids[0])


@contextmanager
def _bar(steps: int, title: str) -> Iterator[Observer]:
    from rich.console import Console

    terminal: Any = Unbroken(sys.stderr)
    with bar_on(Console(file=terminal), title, steps) as progress:
        task = progress.task_ids[0]
        begun = False

        def move(seen: Seen) -> None:
            nonlocal begun
            if not begun:  # where the run goes on, which took no time
                progress.tasks[0].completed = seen.done - 1
                begun = True
            progress.update(task, completed=seen.done)
            if seen.lines:
                progress.update(task, numbers=_numbers(seen.lines[-1]))

        yield move


def bar_on(console: Any, title: str, total: int, transient: bool = False) -> Any:
    """Title, bar, count, rate, elapsed and remaining time on one line, which a narrow terminal cuts
    at the title and the bar; the numbers stand below it. transient: it goes when it is done.
    """
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Told(ProgressColumn):
        """Words about the task, which are never cut."""

        def __init__(self, words: Callable[[Any], str]):
            self.words = words
            super().__init__(Column(no_wrap=True))

        def render(self, task: Any) -> Text:
            return Text(self.words(task))

    class TwoLines(Progress):
        """The tasks, and the numbers of the first."""

        def get_renderables(self) -> Iterator[Any]:
            yield self.make_tasks_table(self.tasks)
            if self.tasks and (numbers := self.tasks[0].fields["numbers"]):
                yield Text(f"  {numbers}", no_wrap=True, overflow="ellipsis")

    progress = TwoLines(
        TextColumn(
            "{task.description}",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
        ),
        BarColumn(bar_width=None, table_column=Column(ratio=2)),
        Told(lambda task: f"{task.completed:.0f}/{task.total:.0f}"),
        Told(lambda task: _rate(task.finished_speed or task.speed)),
        Told(lambda task: f"{_clock(task.elapsed)} < {_clock(task.time_remaining)}"),
        console=console,
        expand=True,
        transient=transient,
        speed_estimate_period=3600,  # a step may take minutes
    )
    progress.add_task(title, total=total, numbers="")
    return progress


def _rate(speed: float | None) -> str:
    """Steps a second, or seconds a step where these are more than one."""
    if not speed:
        return "–/s"
    return f"{speed:.3g}/s" if speed >= 1 else f"{1 / speed:.3g} s each"


def _clock(seconds: float | None) -> str:
    """Hours where there are some, minutes and seconds."""
    if seconds is None:
        return "–:––"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _in_notebook() -> bool:
    """Whether a notebook's kernel runs this: it has imported IPython, and says so."""
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"


def _numbers(line: Mapping[str, Any]) -> str:
    """Of a line of the log what somebody wants to see while it trains, each number once."""
    left_out = ("step", "rate", "skipped")
    shown: dict[str, float] = {}
    for key, value in line.items():
        again = value in shown.values()  # an unweighted loss, and the distance that it is
        if key not in left_out and not key.startswith("norm.") and not again:
            short = key.removeprefix("health.").replace("_", " ")
            shown[key if short in shown else short] = value
    return ", ".join(f"{name} {value:.3g}" for name, value in shown.items())
