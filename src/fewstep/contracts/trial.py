"""A method put to the test: on a tiny teacher, 64 digits and three steps."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.data.dataset import Dataset
from fewstep.data.digits import Digits
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.process import Process, VarianceExploding
from fewstep.diffusion.samplers import Sampler
from fewstep.learning.batch import Batch
from fewstep.learning.dropout import seeded, without_dropout
from fewstep.learning.method import Clock, Losses, Method, Update
from fewstep.models.adapters import Adaptation, FullCopy
from fewstep.models.bundle import DiffusionModel
from fewstep.models.source import Fresh
from fewstep.models.unet import UNet
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import Sgd
from fewstep.training.trainer import Trainer

TINY = UNet(channels=8, multipliers=(1, 1), blocks=1, attention=(2,), head_channels=8, groups=4)
STEPS = 3

Weights = dict[str, Tensor]


class Tried(NamedTuple):
    """A run on the tiny teacher. before: its weights before the first step."""

    model: DiffusionModel
    trainer: Trainer
    before: Weights


class Trial:
    """A method with its defaults, a new object for every run, and what its laws need again.

    adaptation: how the method's networks are made; full copies if not given.
    """

    def __init__(self, cls: type[Method], adaptation: Adaptation | None = None):
        self.cls, self.adaptation = cls, adaptation or FullCopy()

    @functools.cached_property
    def rows(self) -> int:
        """Rows of a batch: 16, or four of the method's groups."""
        group = self.cls().group()
        return 16 if 16 % (4 * group) == 0 else 4 * group

    def prepared(
        self,
        process: Process | None = None,
        folder: Path | None = None,
        model: DiffusionModel | None = None,
        **config: Any,
    ) -> Tried:
        """A run that has not begun. model: in place of the tiny teacher of this process. config:
        options of the trainer.
        """
        model = model or teacher(process or VarianceExploding())
        options: dict[str, Any] = {
            "steps": STEPS,
            "batch": self.rows,
            "optimizer": Sgd(lr=0.05),
            "ema": (0.5,),
            "device": "cpu",
        }
        chosen = TrainerConfig(**(options | config))
        run = Run(Digits(), self.cls(), adaptation=self.adaptation, trainer=chosen)
        trainer = run.prepared(digits(), model=model, folder=folder).trainer
        return Tried(model, trainer, weights(trainer))

    def trained(self, process: Process | None = None, **config: Any) -> Tried:
        """A run that has ended."""
        tried = self.prepared(process, **config)
        tried.trainer.fit()
        return tried

    @functools.cached_property
    def finished(self) -> Tried:
        """The plain run, trained once for all laws that only look at it."""
        return self.trained()


@functools.cache
def digits() -> Dataset:
    """64 digits with labels."""
    return Digits(limit=64).dataset()


def teacher(process: Process) -> DiffusionModel:
    """A tiny teacher with weights everywhere: a fresh one is zero in its last layers and would hide
    mistakes.
    """
    model = Fresh(network=TINY, process=process).load(digits().space, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.denoiser.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def weights(trainer: Trainer) -> Weights:
    """Copies of all tensors of all networks, by `network/name`."""
    found = {}
    for name, module in trainer.state.modules.items():
        for key, value in module.state_dict().items():
            found[f"{name}/{key}"] = value.clone()
    return found


def students(tried: Tried) -> Iterator[tuple[Sampler, DiffusionModel]]:
    """(sampler, model) of each exported network that generates."""
    trainer = tried.trainer
    guidance = trainer.method.student_guidance(tried.model.guidance)
    for name in trainer.state.roles.exports:
        sampler = trainer.method.sampler(trainer.clock(STEPS - 1), name)
        if sampler is not None:
            net: Any = trainer.state.exported(name)
            yield sampler, tried.model.with_student(net, sampler, guidance, {}, {})


def updates(trainer: Trainer) -> Iterator[tuple[Clock, int, Update]]:
    """Every update of the three steps, with its place in its step; what it trains can learn."""
    for step in range(STEPS):
        clock = trainer.clock(step)
        for index, update in enumerate(trainer.method.updates(clock)):
            trainer.step.let_learn(update.trains)
            yield clock, index, update


def batch_of(trainer: Trainer, clock: Clock, index: int, parts: Sequence[range]) -> Batch:
    """Rows of the first batch, with the draws of an update."""
    rows: list[int] = []
    pieces = []
    for part in parts:
        rows += part
        pieces.append(trainer.data(0, part, Draws(7, part)))
    values = {}
    for name in pieces[0].cond.values:
        values[name] = torch.cat([piece.cond[name] for piece in pieces])
    cond = Cond(values, pieces[0].cond.null)
    draws = Draws(7, rows, stream="loss", step=clock.step, update=index)
    x0 = torch.cat([piece.data for piece in pieces])
    return Batch(cond, draws, pieces[0].shape, x0)


def losses_of(
    trainer: Trainer, clock: Clock, index: int, update: Update, parts: Sequence[range], seed: int
) -> Losses:
    """The losses of an update on these rows, without gradients and dropout. seed: of Python's
    torch, on which they must not depend.
    """
    batch = batch_of(trainer, clock, index, parts)
    all_nets = torch.nn.ModuleList(trainer.state.modules.values())
    with seeded(seed, torch.device("cpu")), without_dropout(all_nets):
        losses = update.loss(trainer.nets, batch, clock)
    terms = {name: term.detach() for name, term in losses.terms.items()}
    return Losses(terms, losses.notes)


def changed(before: Weights, after: Weights) -> list[str]:
    """The tensors that are not equal to the bit."""
    return [key for key, value in after.items() if not torch.equal(value, before[key])]


def unequal(one: Weights, two: Weights, tolerance: float = 0.0) -> str | None:
    """Which tensor differs most, and by how much; None where all are equal: to the bit, or within
    the tolerance and 1e-5 of their size.
    """
    differing = changed(one, two)
    if tolerance:
        differing = [
            key
            for key in differing
            if not torch.allclose(one[key], two[key], rtol=1e-5, atol=tolerance)
        ]
    if not differing:
        return None
    worst = max(differing, key=lambda key: float((one[key] - two[key]).abs().max()))
    return f"{worst} differs by {largest(one[worst], two[worst])}"


def largest(one: Tensor, two: Tensor) -> str:
    """The largest difference of two tensors, as a number to read."""
    return f"{float((one.double() - two.double()).abs().max()):.3g}"
