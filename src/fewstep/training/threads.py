"""How many threads a run computes with: so many as are fast on this machine now.

Threads of one operation wait for each other, so that with a busy neighbour on the same cores a step
can take a hundred times as long with all cores as with one. Another number of threads is another
order of additions: a run that goes on keeps the number that its checkpoint notes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fewstep.choice import replaced
from fewstep.models.size import parameters_in
from fewstep.training.step import Step

SET = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables by which somebody chose already."""
ROWS = 8
"""Of the pass that is measured, at most."""
LARGE = 20_000_000
"""Parameters, from which on a pass has one row."""
SLOW = 1.0  # seconds of a pass, which is not made twice then
NUMBERS = 1 << 17  # of a tensor that PyTorch divides among threads
TRIES = 40
STUCK = 4.0
"""Times as slow as one thread: then threads wait, and no pass is tried with so many."""
BETTER = 0.9
"""Of the seconds: less is faster."""


@contextmanager
def threads_kept() -> Iterator[None]:
    """Behind the block PyTorch has as many threads as before."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def unhindered() -> Iterator[None]:
    """Within the block PyTorch has no more threads than do not wait for other work, unless somebody
    chose their number.
    """
    with threads_kept():
        number = torch.get_num_threads() if _open() else 1
        while number > 1 and waits(number):
            number //= 2
            torch.set_num_threads(number)
        yield


def settle(trainer: Any, noted: int | None = None) -> str:
    """Gives PyTorch the threads that the run asks for (`trainer.threads`), or, on a CPU whose
    threads nobody chose, those that are fastest. What was found, '' where nothing was tried.

    noted: the number that a checkpoint was made with, which is kept where nobody asks for another.
    """
    config, most = trainer.config, torch.get_num_threads()
    if config.threads:
        torch.set_num_threads(config.threads)
        return ""
    if not free(trainer):
        return ""
    if noted is not None:
        torch.set_num_threads(min(noted, most))
        return ""
    return _settle(trainer, most)


def free(trainer: Any) -> bool:
    """Whether the number of threads is to be found: on a CPU, where nobody says it. Compiled
    networks keep the number that they were compiled for.
    """
    config = trainer.config
    alone = trainer.device.type == "cpu" and trainer.world.size == 1
    return alone and not config.threads and not config.compile and _open()


def _open() -> bool:
    """Whether there are several threads and nobody chose their number."""
    return torch.get_num_threads() > 1 and not any(os.environ.get(name) for name in SET)


def _settle(trainer: Any, most: int) -> str:
    """Leaves the fastest number of threads, and says it."""
    found = {1: _seconds(trainer, 1)}
    number = most
    while number > 1:
        if waits(number):
            number //= 2
            continue
        found[number] = _seconds(trainer, number)
        if found[number] < BETTER * found[1]:
            break
        number //= 2
    best = min(found, key=lambda one: (found[one], -one))
    if best == 1 and most in found and found[most] <= found[1] / BETTER:
        best = most  # no difference that one could trust
    torch.set_num_threads(best)
    if best == most:
        return f"{best} threads, all that there are"
    return f"{best} of {most} threads: more wait for other work on this machine"


def waits(number: int) -> bool:
    """Whether an operation with so many threads takes far longer than with one. PyTorch has so many
    then.
    """
    x = torch.zeros(NUMBERS)
    torch.set_num_threads(1)
    x.mul(1.0)
    begun = time.perf_counter()
    for _ in range(TRIES):
        x.mul(1.0)
    alone = time.perf_counter() - begun
    torch.set_num_threads(number)
    x.mul(1.0)
    begun = time.perf_counter()
    for _ in range(TRIES):
        x.mul(1.0)
        if time.perf_counter() - begun > STUCK * alone:  # the rest would take as long
            return True
    return False


def _seconds(trainer: Any, number: int) -> float:
    """Of a pass of the first update on a few rows, the faster of two unless they are slow; nothing
    stays of it.
    """
    torch.set_num_threads(number)
    method, state, clock = trainer.method, trainer.state, trainer.clock(0)
    unit = method.group()
    size = max(map(parameters_in, state.modules.values()))
    most = 1 if size > LARGE else min(ROWS, trainer.config.batch)
    rows = max(unit, most // unit * unit)
    config = replaced(trainer.config, batch=rows, micro_batch=0)
    step = Step(method, trainer.nets, trainer.data, config, state)
    update = method.updates(clock)[0]
    kept = {}
    for network in state.modules.values():
        for buffer in network.buffers():
            kept[buffer] = buffer.clone()
    step.let_learn(update.trains)
    found: list[float] = []
    while len(found) < 2 and sum(found) < SLOW:
        begun = time.perf_counter()
        step.backward(update, clock, 0, 0)
        found.append(time.perf_counter() - begun)
        state.forget_gradients(update.trains)
    with torch.no_grad():
        for buffer, value in kept.items():
            buffer.copy_(value)
    return min(found)
