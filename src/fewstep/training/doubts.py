"""What in a run's options does not fit its length: said when it begins, and by `fewstep plan`."""

import itertools
from collections.abc import Sequence

from fewstep.learning.averaging import share_of_start
from fewstep.text import counted
from fewstep.training.config import TrainerConfig

LEAST = 0.01  # of an average, that may be left of the first weights without a word


def shortest(phases: Sequence[int]) -> int:
    """Steps of the shortest phase. phases: their first steps, and the number of all steps."""
    return min(after - first for first, after in itertools.pairwise(phases))


def doubts(config: TrainerConfig, phases: Sequence[int]) -> list[str]:
    """A line for each option that was made for a longer run, with its figure and the remedy."""
    steps = shortest(phases)
    where = "run" if len(phases) == 2 else "phase"
    found = []
    for decay in config.ema:
        share = share_of_start(decay, steps, config.ema_warmup)
        if share > LEAST:
            found.append(
                f"{share:.0%} of the average {decay:g} will be weights from before the {where}, "
                f"which has {steps} steps: trainer.ema_warmup=true leaves them out"
            )
    warmup = config.schedule.warmup
    if warmup > steps:
        found.append(
            f"the learning rate ends at {steps / warmup:.0%} of itself: trainer.schedule.warmup="
            f"{warmup} is longer than the {where} of {counted(steps, 'step')}"
        )
    elif 4 * warmup > 3 * steps:
        found.append(
            f"the learning rate is full for {steps - warmup} of {steps} steps of a {where}: "
            f"trainer.schedule.warmup={warmup} takes the others"
        )
    return found
