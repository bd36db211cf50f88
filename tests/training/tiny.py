"""Runs that train in milliseconds: real batches of 20 tiny images, networks of 58 weights."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from fewstep.choice import Choice
from fewstep.data.dataset import held_images
from fewstep.data.digits import Digits
from fewstep.data.stream import Stream
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.parameterization import Edm
from fewstep.diffusion.process import VarianceExploding
from fewstep.diffusion.samplers import Ode
from fewstep.learning.averaging import ema_update
from fewstep.learning.batch import Batch
from fewstep.learning.losses import Squared
from fewstep.learning.method import Clock, Losses, Update
from fewstep.learning.roles import moved, trained
from fewstep.learning.schedules import Linear
from fewstep.models.bundle import DiffusionModel
from fewstep.models.codec import Pixels
from fewstep.models.conditioner import Unconditional
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW
from fewstep.training.seen import Seen
from fewstep.training.trainer import Trainer

SHAPE = (1, 2, 2)
IMAGES = 20


def data(seed: int = 0, batch: int = 8, images_seed: int = 0) -> Stream:
    """Batches that cross the ends of epochs: 20 images do not divide by 8."""
    generator = torch.Generator().manual_seed(images_seed)
    images = torch.randint(256, (IMAGES, *SHAPE), generator=generator, dtype=torch.uint8)
    return Stream(
        held_images(images, None, 0, torch.arange(IMAGES)),
        Pixels().build(),
        Unconditional().build(),
        seed,
        batch,
    )


def network(seed: int, dropout: float) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Linear(4, 6), nn.SiLU(), nn.Dropout(dropout), nn.Linear(6, 4)
    return nn.Sequential(nn.Flatten(), *layers, nn.Unflatten(1, SHAPE))


@dataclass(frozen=True)
class Single(Choice):
    """One optimizer and a slow copy, as in consistency distillation.

    Not a `Method` by inheritance: it would join the methods that the library offers, in every other
    test. poison: steps whose loss, or value, or gradient alone, is not finite, in update number
    `poisoned_update`.
    """

    needs: ClassVar[tuple[str, ...]] = ("x0",)

    dropout: float = 0.1
    target_decay: float = 0.9
    poison: tuple[int, ...] = ()
    poisoned: Literal["loss", "value", "gradient"] = "loss"
    poisoned_update: int = 0

    @dataclass
    class Nets:
        student: nn.Module = trained(exported=True)
        target: nn.Module = moved()

    def nets(self) -> Any:
        student, target = network(1, self.dropout), network(2, self.dropout)
        target.load_state_dict(student.state_dict())
        return self.Nets(student, target)

    def updates(self, clock: Clock) -> Sequence[Update]:
        return [Update(("student",), self.student_loss)]

    def after_step(self, nets: Any, clock: Clock) -> None:
        ema_update(nets.target, nets.student, self.target_decay)

    def phases(self, steps: int) -> Sequence[int]:
        return (0,)

    def group(self) -> int:
        return 1

    def sampler(self, clock: Clock, net: str = "student") -> None:
        return None

    def student_loss(self, nets: Any, batch: Batch, clock: Clock) -> Losses:
        x0, noise = batch.data, batch.noise()
        t = batch.draws.uniform().float().view(-1, 1, 1, 1)
        jump = nets.student(x0 + t * noise)
        with torch.no_grad():
            goal = nets.target(x0 + 0.5 * t * noise)
        value = Squared()(jump, 0.5 * (x0 + goal))
        size = jump.square().flatten(1).mean(1)
        return Losses({"student": self._spoilt(value, nets.student, clock, 0)}, {"size": size})

    def _spoilt(self, value: Tensor, net: nn.Module, clock: Clock, update: int) -> Tensor:
        if clock.step not in self.poison or update != self.poisoned_update:
            return value
        if self.poisoned == "loss":
            return value * math.nan
        if self.poisoned == "value":
            return value + math.inf  # and its gradient is finite
        weight = next(net.parameters()).sum()
        return value + (weight - weight.detach()).sqrt()  # adds 0 with an infinite slope


@dataclass(frozen=True)
class Rhythm(Single):
    """Two optimizers in the rhythm of distribution matching: the fake network twice, then the
    student.
    """

    @dataclass
    class Nets:
        student: nn.Module = trained(exported=True)
        fake: nn.Module = trained()
        target: nn.Module = moved()

    def nets(self) -> Any:
        student, target = network(1, self.dropout), network(2, self.dropout)
        target.load_state_dict(student.state_dict())
        return self.Nets(student, network(3, self.dropout), target)

    def updates(self, clock: Clock) -> Sequence[Update]:
        fake = ("fake",)
        return [
            Update(fake, self.fake_loss),
            Update(fake, self.second_loss),
            Update(("student",), self.match_loss),
        ]

    def fake_loss(self, nets: Any, batch: Batch, clock: Clock, update: int = 0) -> Losses:
        with torch.no_grad():
            made = nets.student(batch.noise())
        value = Squared()(nets.fake(made + batch.noise()), made)
        return Losses({"fake": self._spoilt(value, nets.fake, clock, update)})

    def second_loss(self, nets: Any, batch: Batch, clock: Clock) -> Losses:
        return self.fake_loss(nets, batch, clock, 1)

    def match_loss(self, nets: Any, batch: Batch, clock: Clock) -> Losses:
        made = nets.student(batch.noise())
        value = Squared()(made, 0.5 * (batch.data + nets.fake(made) + nets.target(made)))
        return Losses({"match": self._spoilt(value, nets.student, clock, 2)})


@dataclass(frozen=True)
class Phased(Rhythm):
    """Three phases as in progressive distillation: at the end of each the student becomes the
    target.
    """

    def phases(self, steps: int) -> Sequence[int]:
        return (0, steps // 3, 2 * steps // 3)

    def after_step(self, nets: Any, clock: Clock) -> None:
        if clock.phase_step == clock.phase_steps - 1:
            ema_update(nets.target, nets.student, 0.0)


def config(**changes: Any) -> TrainerConfig:
    """Twelve steps with all that a resumed run could get wrong: warm-up, two averages, a rate that
    moves.
    """
    chosen: dict[str, Any] = {
        "steps": 12,
        "batch": 8,
        "optimizer": AdamW(lr=1e-2, weight_decay=0.1),
        "schedule": Linear(warmup=3, end=0.1),
        "ema": (0.9, 0.5),
        "device": "cpu",
        "save_every": 0,
        "health_every": 0,
    }
    return TrainerConfig(**{**chosen, **changes})


def trainer(
    method: Any, folder: Any = None, chosen: TrainerConfig | None = None, stream: Any = None
) -> Trainer:
    chosen = chosen or config()
    return Trainer(method, method.nets(), stream or data(chosen.seed, chosen.batch), chosen, folder)


class Tokens(nn.Module):
    """The smallest network that every method of the library takes: each pixel is a token, and sees
    the image's mean.
    """

    inputs: tuple[str, ...] = ()

    def __init__(self, seed: int = 0, dropout: float = 0.0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.middle = nn.Sequential(nn.Linear(3, 6), nn.SiLU(), nn.Dropout(dropout))
            self.last = nn.Linear(6, 1)
        self.taps = {"middle": 6}

    def with_inputs(self, names: Any) -> Any:
        made = copy.deepcopy(self)
        made.inputs = tuple(sorted(names))
        return made

    def forward(self, x: Tensor, t: Tensor, cond: Any, s: Any = None) -> Tensor:
        pixels = x.flatten(1)[..., None]
        t = t if s is None else t + 0.1 * s
        level = (t / (1 + t)).to(x)[:, None, None].expand_as(pixels)
        read = torch.cat([pixels, pixels.mean(1, keepdim=True).expand_as(pixels), level], dim=2)
        return self.last(self.middle(read.to(self.last.weight.dtype))).view_as(x)


def model(seed: int = 0, dropout: float = 0.0) -> Any:
    """What methods ask of a model: its denoiser, and what conditions it."""
    denoiser = Denoiser(Tokens(seed, dropout), VarianceExploding(), Edm())
    codec, conditioner = Pixels().build(), Unconditional().build()
    return DiffusionModel(denoiser, codec, conditioner, SHAPE, Ode())


def real(
    method: Any,
    folder: Any = None,
    chosen: TrainerConfig | None = None,
    of: Any = None,
    default: Denoiser | None = None,
    **options: Any,
) -> Trainer:
    """A trainer of a method of the library. of: the model that is the teacher. default: what the
    student starts as. options: of the run.
    """
    chosen, of = chosen or config(), of or model()
    run = Run(Digits(), method, trainer=chosen, **options)
    begin = None if default is None else dataclasses.replace(of, denoiser=default)
    found = run.prepared(data().dataset, model=of, begin=begin, folder=folder)
    return found.trainer


class StopError(Exception):
    """Ends a run from an observer, behind a step."""


def stop_at(step: int) -> Any:
    def look(seen: Seen) -> None:
        if seen.done == step:
            raise StopError

    return look


def cut(method: Any, folder: Any, step: int, **changes: Any) -> None:
    """A run that ended behind `step`, with checkpoints of the multiples of save_every (default: of
    that step).
    """
    with pytest.raises(StopError):
        trainer(method, folder, config(**{"save_every": step, **changes})).fit(stop_at(step))


def state(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of everything that training changes, read from the trainer and not through its
    checkpoints.
    """
    found: dict[str, Tensor] = {}
    for name, module in trainer.state.modules.items():
        found |= {f"net/{name}/{k}": v for k, v in module.state_dict().items()}
    for name, by_decay in trainer.state.averages.items():
        found |= {
            f"ema/{name}/{d}/{k}": v for d, average in by_decay.items() for k, v in average.items()
        }
    for name, optimizer in trainer.state.optimizers.items():
        for index, values in optimizer.state_dict()["state"].items():
            found |= {
                f"optimizer/{name}/{index}/{k}": v
                for k, v in values.items()
                if isinstance(v, Tensor)
            }
    found |= {"flags": trainer.skips.flags, "batches": torch.tensor(trainer.batches)}
    return {key: value.detach().clone() for key, value in found.items()}


def part(state: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key.startswith(prefixes)}


def bits(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().numpy().tobytes()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], why: str = "") -> None:
    """Bitwise: a tolerance would hide a random state or a counter that was not restored."""
    assert found.keys() == expected.keys(), why
    other = [key for key in expected if bits(found[key]) != bits(expected[key])]
    assert not other, f"{other} differ; {why}"
