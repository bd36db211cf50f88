"""Where a step of a run stands, and whether a run can be made longer."""

import bisect
from collections.abc import Sequence
from typing import Any

from fewstep.choice import kind_of, replaced
from fewstep.errors import RefusedError
from fewstep.learning.method import Clock
from fewstep.text import counted
from fewstep.training.config import TrainerConfig


def clock_at(step: int, config: TrainerConfig, phases: Sequence[int]) -> Clock:
    """Where a step of a run stands. phases: their first steps, then the number of steps."""
    phase = bisect.bisect_right(phases, step, hi=len(phases) - 1) - 1
    first, after = phases[phase], phases[phase + 1]
    return Clock(step, config.steps, config.batch, phase, step - first, after - first)


def check_longer(trainer: Any, before: int, done: int) -> None:
    """RefusedError where a run of more steps would have come to another state behind `done` of
    them than the run of `before` did.
    """
    if reason := _spread(trainer, before, done):
        where = "RUN" if trainer.folder is None else trainer.folder.path
        raise RefusedError(
            f"a run of {counted(before, 'step')} cannot be made longer: {reason} spread over all "
            f"of them; start={where} with another name= begins a new run with its weights"
        )


def _spread(trainer: Any, before: int, done: int) -> str:
    """What of the steps that are done depends on how many there are; '' for nothing."""
    method, config = trainer.method, trainer.config
    name = kind_of(type(method))
    if method.reads_length:
        return f"the curriculum of {name} is"
    old, phases = replaced(config, steps=before), (*method.phases(before), before)
    for step in range(done):
        was, now = clock_at(step, old, phases), trainer.clock(step)
        if (was.phase, was.phase_step) != (now.phase, now.phase_step):
            return f"the phases of {name} are"
        if config.schedule(was) != config.schedule(now):
            return f"its learning rate ({kind_of(type(config.schedule))}) is"
    return ""
