"""What the checks of two processes are made of: runs, and how two of them are compared."""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tests.test_contracts import METHODS
from tests.training import tiny
from tests.training.tiny import Rhythm
from torch import Tensor

from fewstep.choice import replaced
from fewstep.contracts.trial import teacher
from fewstep.data.digits import Digits
from fewstep.data.stream import Stream
from fewstep.diffusion.process import VarianceExploding
from fewstep.learning.method import Method
from fewstep.models.adapters import Adaptation, FullCopy
from fewstep.models.dit import Dit
from fewstep.models.source import Fresh
from fewstep.run import Run
from fewstep.training.checkpoint import Checkpoints
from fewstep.training.config import TrainerConfig
from fewstep.training.log import read_log
from fewstep.training.optimizers import AdamW, Sgd
from fewstep.training.processes import World
from fewstep.training.seen import Observer
from fewstep.training.trainer import Trainer

CHECKS: dict[str, Callable[[World, Path], dict[str, Any]]] = {}
COMMANDS: dict[
    str, Callable[[World, Path], dict[str, Any]]
] = {}  # behind the checks: they meet by themselves
ALONE = World()
DESCENT = Sgd(lr=0.05)
SHORTER = {"dmd2": {"fake_steps": 2}}  # the same in fewer updates
FULL = {"sharding": "full"}
Groups = dict[str, dict[str, Tensor]]


def check(
    function: Callable[[World, Path], dict[str, Any]],
) -> Callable[[World, Path], dict[str, Any]]:
    CHECKS[function.__name__] = function
    return function


@functools.cache
def digits() -> Any:
    return Digits(limit=64).dataset()


def tiny_dit() -> Any:
    """A teacher that is a transformer, with weights everywhere."""
    model = Fresh(network=Dit(width=16, depth=2, heads=2, mlp_ratio=2)).load(digits().space, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.denoiser.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def of_digits(
    method: Method,
    world: World,
    folder: Path,
    model: Any = None,
    adaptation: Adaptation | None = None,
    **chosen: Any,
) -> Trainer:
    """Three steps of 16 digits with the tiny teacher of the contracts, without dropout."""
    options: dict[str, Any] = {
        "steps": 3,
        "batch": 16,
        "optimizer": DESCENT,
        "ema": (0.5,),
        "device": "cpu",
    }
    config = TrainerConfig(**{**options, "save_every": 0, "health_every": 0, **chosen})
    made = adaptation or FullCopy()
    run = Run(Digits(), method, adaptation=made, dropout=0.0, trainer=config)
    model = model or teacher(VarianceExploding())
    return run.prepared(digits(), model=model, folder=folder, world=world).trainer


def of_weights(
    world: World, folder: Path, data: Callable[[Stream], Any] = lambda s: s, **chosen: Any
) -> Trainer:
    """Six steps of 8 rows with networks of 58 weights and two optimizers; data: stands between the
    stream and it.
    """
    method, config = Rhythm(dropout=0.0), tiny.config(**{"steps": 6, **chosen})
    return Trainer(
        method, method.nets(), data(tiny.data(config.seed, config.batch)), config, folder, world
    )


class Done(NamedTuple):
    """A run that ended: what it saved at its end, its log, the trainer."""

    saved: Groups
    lines: list[dict[str, float]]
    trainer: Trainer


def run(trainer: Trainer, *observers: Observer, say: Any = print) -> Done:
    trainer.fit(*observers, say=say)
    assert trainer.folder is not None
    folder, steps = trainer.folder.path, trainer.config.steps
    if (
        trainer.state.sharded
    ):  # what is on the disk, for gathering it here costs a message per tensor
        saved = Checkpoints(folder / "checkpoints", writes=False).load(steps).tensors
    else:  # what this process holds
        saved = {
            group: {k: v.clone() for k, v in tensors.items()}
            for group, tensors in trainer.state.saved().items()
        }
    return Done(saved, read_log(folder / "log.jsonl"), trainer)


@functools.cache
def alone(make: Callable[..., Trainer], folder: Path, **chosen: Any) -> tuple[Done, Groups]:
    """The same run in one process, and what it began with; every process makes its own, side by
    side.
    """
    trainer = make(ALONE, folder.with_name(f"{folder.name}-alone-{os.environ['RANK']}"), **chosen)
    began = {
        group: {k: v.clone() for k, v in tensors.items()}
        for group, tensors in trainer.state.saved().items()
    }
    return run(trainer), began


@functools.cache
def by_name(name: str) -> Callable[..., Trainer]:
    """The maker of runs of a method with its defaults."""
    return functools.partial(of_digits, replaced(METHODS[name](), **SHORTER.get(name, {})))


DISTILLATION = by_name("consistency_distillation")


def furthest(a: Groups, b: Groups, *groups: str) -> float:
    """The largest difference of two states, over the groups given (default: weights and
    averages).
    """
    worst = 0.0
    for group in groups or ("nets", "ema"):
        assert a[group].keys() == b[group].keys()
        for key, value in a[group].items():
            difference = (value.double() - b[group][key].double()).abs().max().item()
            worst = max(worst, difference if math.isfinite(difference) else math.inf)
    return worst


def of_logs(a: list[dict[str, float]], b: list[dict[str, float]]) -> float:
    """The largest difference of two logs, relative above 1, over all numbers; infinite where a
    number is missing.
    """
    if [list(line) for line in a] != [list(line) for line in b]:
        return math.inf
    pairs = [(x[k], y[k]) for x, y in zip(a, b) for k in x]
    return max(
        (abs(x - y) / max(1.0, abs(x)) for x, y in pairs if not (math.isnan(x) and math.isnan(y))),
        default=0.0,
    )


def bits(groups: Mapping[str, Mapping[str, Tensor]]) -> str:
    found = hashlib.sha256()
    for group in sorted(groups):
        for key in sorted(groups[group]):
            value = groups[group][key].contiguous()
            found.update(
                f"{group}/{key} {value.dtype} {tuple(value.shape)}".encode()
                + value.numpy().tobytes()
            )
    return found.hexdigest()[:16]


def compared(one: tuple[Done, Groups], two: Done) -> dict[str, Any]:
    done, began = one
    return {
        "lines": len(two.lines),
        "losses": of_logs(done.lines, two.lines),
        "weights": furthest(done.saved, two.saved),
        "moved": furthest(done.saved, began, "nets"),
        "bits": bits(two.saved),
        "norms": [line[k] for line in two.lines for k in line if k.startswith("norm.")],
    }


def is_key_bias(name: str, value: Tensor) -> Tensor:
    """Where attention's key biases lie: the middle third of each qkv.bias.

    Their gradient is zero in exact arithmetic: q·(k + b) adds the same number q·b to the scores of
    a query with all keys, and the softmax over the keys does not see it. What is left is rounding,
    and AdamW, whose steps know the sign and hardly the size, makes steps of it.
    test_only_key_biases_have_no_gradient shows that no other weight is so: GroupNorm takes away the
    mean of the biases in front of it over each of its groups, and ours have two channels.
    """
    place = torch.zeros(value.shape, dtype=torch.bool)
    if name.endswith("qkv.bias"):
        place[len(value) // 3 : 2 * len(value) // 3] = True
    return place


def same(name: str, world: World, folder: Path, **chosen: Any) -> dict[str, Any]:
    """One process and two, plain descent."""
    return compared(
        alone(by_name(name), Path(folder.parent.parent, f"one-{name}", "run")),
        run(by_name(name)(world, folder, **chosen)),
    )


def same_adam(name: str, world: World, folder: Path) -> dict[str, Any]:
    """One process and two, AdamW: its key biases apart, and how many of the other weights lie
    apart.
    """
    make, adam = by_name(name), AdamW(lr=1e-3)
    one, two = alone(make, folder, optimizer=adam), run(make(world, folder, optimizer=adam))
    other, keys = [], []
    for key, value in one[0].saved["nets"].items():
        gap, place = (value - two.saved["nets"][key]).abs(), is_key_bias(key, value)
        other.append(gap[~place])
        keys.append(gap[place])
    others = torch.cat(other)
    far = {"weights": others.max().item(), "keys": torch.cat(keys).max().item()}
    return (
        compared(one, two) | far | {"beyond": int((others > 1e-5).sum()), "count": others.numel()}
    )


def command(
    function: Callable[[World, Path], dict[str, Any]],
) -> Callable[[World, Path], dict[str, Any]]:
    COMMANDS[function.__name__] = function
    return function
