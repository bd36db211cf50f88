"""Losses and gradient norms that jump: a batch that spoils what was learned shows there."""

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fewstep.training.observers import Reading
from fewstep.training.processes import World
from fewstep.training.seen import Seen

WINDOW = 200  # steps of the phase that a step is compared with
LEAST = 20  # of them, before anything is judged
DEVIATIONS = 8.0  # of a loss above its median; one is 1.4826 times the median distance from it
LITTLE = 0.05  # of the median; no deviation is less, or losses that hardly move would jump
LARGEST = 700.0  # logarithm of a number that a float still holds
TIMES = 20.0  # of a gradient norm above its median
ROLL_BACKS = 3  # of one run


class SpikeError(RuntimeError):
    """A run is to go back behind a step that jumped; the trainer catches it."""


class Spikes:
    """Compares the losses and gradient norms of every step with those before it in its phase, each
    time the log is read, and adds to the log how many steps have jumped (`spikes`). What is not
    finite is no spike: such a step is left out.

    past: the last numbers, by name; they go into checkpoints.
    """

    def __init__(self, world: World):
        self.world = world
        self.past: dict[str, deque[float]] = {}
        self._waiting: list[tuple[int, str, Tensor]] = []

    def watch(
        self, reading: Reading, jumped: Callable[[Seen, str], None]
    ) -> Callable[[Seen], None]:
        """The observer, which stands before the log. reading: when the device is waited for.
        jumped: called with words on the first step that did; what it raises ends the step.
        """
        self._waiting.clear()

        def look(seen: Seen) -> None:
            if seen.clock.phase_step == 0:
                self._waiting.clear()  # another phase is another thing
                self.past.clear()
            for name, value in _numbers(seen).items():
                self._waiting.append((seen.done, name, value))
            if not reading(seen):
                return
            found = self._read()
            if self.world.max(len(found)):
                seen.numbers["spikes"] = float(len(found))
                jumped(seen, next(iter(found.values()), "a loss jumped in another process"))

        return look

    def _read(self) -> dict[int, str]:
        """The steps that jumped since the last time, in words."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return {}
        found: dict[int, str] = {}
        numbers = torch.stack([value.detach().float() for *_, value in waiting]).tolist()
        for (step, name, _), number in zip(waiting, numbers, strict=True):
            past = self.past.setdefault(name, deque(maxlen=WINDOW))
            if highest(name, past) < number < math.inf and step not in found:
                usual = statistics.median(past)
                found[step] = f"step {step}: the {name} is {number:.3g}, the usual is {usual:.3g}"
            if math.isfinite(number):
                past.append(number)
        return found

    def saved(self) -> dict[str, Tensor]:
        """What a run that goes on compares its steps with."""
        past = self.past.items()
        return {name: torch.tensor(list(numbers), dtype=torch.float64) for name, numbers in past}

    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Takes back what `saved` gave."""
        self.past = {name: deque(t.tolist(), maxlen=WINDOW) for name, t in saved.items()}


def _numbers(seen: Seen) -> dict[str, Tensor]:
    found = {f"loss of {name}": value for name, value in seen.losses.items()}
    for key, value in seen.numbers.items():
        if key.startswith("norm.") and isinstance(value, Tensor):
            found[f"gradient norm of {key.removeprefix('norm.')}"] = value
    return found


def highest(name: str, past: Sequence[float]) -> float:
    """What is no jump yet, after these numbers; infinity where they are too few."""
    if len(past) < LEAST:
        return math.inf
    middle = statistics.median(past)
    if name.startswith("gradient norm"):
        return TIMES * middle if middle else math.inf
    if min(past) <= 0:
        return _above(past, LITTLE * abs(middle))
    # Losses are skewed, some by powers of ten: their logarithms are what scatters evenly.
    return math.exp(min(_above([math.log(number) for number in past], LITTLE), LARGEST))


def _above(numbers: Sequence[float], least: float) -> float:
    """So many deviations above the median; least: of a deviation."""
    middle = statistics.median(numbers)
    spread = 1.4826 * statistics.median(abs(number - middle) for number in numbers)
    return middle + DEVIATIONS * max(spread, least)
