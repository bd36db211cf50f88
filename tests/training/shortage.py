"""Memory that runs out at a place of a training step, once."""

import functools

import torch
from tests.training.tiny import (
    config,
    state,
    trainer,
)

from fewstep.training.optimizers import Sgd

ERRORS = {
    "python": MemoryError(),
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
    ),
    "c++": RuntimeError("std::bad_alloc"),
}
OTHERS = (
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ValueError("out of memory"),
    KeyError("x"),
)
PLACES = ("loss", "a later part", "backward", "sums", "clip", "step")
STEPS = 5
DESCENT = {"steps": STEPS, "optimizer": Sgd(lr=0.1), "clip": 0.5}


class Shortage:
    """Raises once, in update `update` of step `step`, at a place of it; counts what is asked of the
    data.
    """

    def __init__(self, one, monkeypatch, place, step=2, update=0, error=ERRORS["cpu"], times=1):
        self.one, self.place, self.left, self.error = one, place, times, error
        self.wanted, self.now, self.asked = (step, update), None, []
        names = one.method.updates(one.clock(0))[update].trains
        read, take = one.step.data, one.step.backward

        def reading(number, rows, draws):
            self.asked.append((draws.step, draws.update, number, rows))
            self.now = draws.step, draws.update
            if rows.start > 0:
                self.at("a later part")
            return read(number, rows, draws)

        def backward(update, clock, index, number):
            self.now = clock.step, index
            self.at("loss")
            sums = take(update, clock, index, number)
            self.at("sums")
            return sums

        one.step.data = reading
        monkeypatch.setattr(one.step, "backward", backward)
        for name in names:
            next(one.state.modules[name].parameters()).register_hook(
                lambda grad: self.at("backward")
            )
        for name, place in (("clip", "clip"), ("guarded_step", "step")):
            self.wrap(monkeypatch, name, place)

    def wrap(self, monkeypatch, name, place):
        import fewstep.training.step as module

        inner = getattr(module, name)

        def call(*arguments):
            self.at(place)
            return inner(*arguments)

        monkeypatch.setattr(module, name, call)

    def at(self, place):
        if place == self.place and self.now == self.wanted and self.left:
            self.left -= 1
            raise self.error


@functools.cache
def halved_at(method, step, update, precision="fp32"):
    """A run whose micro-batches were made 4 at that update by hand: what a shortage there must be
    equal to.
    """
    one = trainer(method, None, config(**DESCENT, precision=precision))
    inner = one.step.backward

    def backward(what, clock, index, number):
        if (clock.step, index) == (step, update):
            one.step.micro = 4
        return inner(what, clock, index, number)

    one.step.backward = backward
    one.fit()
    return state(one)
