"""What a run will need, before it begins: memory by role, time, disk. A few rows of it are really
trained for that.

What stays (weights, averages, optimizer states) is counted as it stands. What passes (activations,
temporaries) is recorded operation by operation, on two numbers of rows: the bytes behind each
operation are a straight line in the rows. Their peak is not, for the moment of the peak moves; so
each line is prolonged, and the peak taken then.
"""

import contextlib
import itertools
import math
import time
import weakref
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fewstep.diffusion.draws import Draws
from fewstep.learning.method import Clock, Method, Update
from fewstep.training.config import TrainerConfig, pick_device
from fewstep.training.precision import Precision
from fewstep.training.processes import BUCKET
from fewstep.training.trainer import Data, Trainer

FIRST = 2  # rows of the first trial: with one row some copies are none
MOST = 2 << 30  # bytes that a pass may take on trial
BUDGET = (
    15.0  # seconds for all trials, roughly: the more, the nearer they come to the rows of a pass
)
STAND_IN: dict[Precision, Precision] = {
    "fp16": "bf16",
    "fp16_teacher": "fp32",
}  # CPUs take 40 times as long for fp16


@dataclass(frozen=True)
class Plan:
    """Bytes of each process: held, what stays, by role; passing, what comes and goes, not all at
    once; at the peak.

    rows: in one pass, of a batch of `share`. tried: the rows that `step`, the seconds of a step
    without health and saving, was measured on, in this precision. checkpoint, student: bytes on the
    disk.
    """

    held: Mapping[str, int]
    passing: Mapping[str, int]
    peak: int
    rows: int
    share: int
    tried: int
    precision: Precision
    step: float
    checkpoint: int
    student: int


def planned(
    method: Method,
    nets: Any,
    data: Data,
    config: TrainerConfig,
    processes: int,
    health_rows: int,
    *loaded: nn.Module,
) -> Plan:
    """The plan of a run. data: a few rows of the run's shape, whatever they hold. The networks are
    trained on.

    health_rows: that health evaluates the loss on. loaded: networks that the run keeps beside those
    of the method. With sharding each role is divided evenly; the block that is gathered at a time
    is not counted.
    """
    stand_in = STAND_IN if pick_device(config.device).type == "cpu" else {}
    precision = stand_in.get(config.precision, config.precision)
    trainer = Trainer(method, nets, data, replace(config, compile=False, precision=precision))
    state, often, found = (
        trainer.state,
        defaultdict[Update, float](float),
        dict[Update, tuple[Clock, int]](),
    )
    for begin, end in itertools.pairwise(trainer._phases):
        for place, update in enumerate(method.updates(clock := trainer.clock(begin))):
            often[update] += (end - begin) / config.steps  # updates of a mean step
            found.setdefault(update, (clock, place))
    share, parts = (
        math.ceil(config.batch / processes),
        processes if config.sharding == "full" else 1,
    )
    rows = tried = min(config.micro_batch or share, share)
    weights = {
        name: sum(p.nbytes for p in leaves.values()) for name, leaves in state.leaves.items()
    }
    passing, most, seconds = {"gradients": 0, "activations": 0, "optimizer's work": 0}, 0, 0.0
    for update, (clock, place) in found.items():
        small, large = _trials(trainer, update, clock, place, rows, BUDGET / len(found))
        whole, activations = peaks(small, large, rows)
        gradients = sum(weights[name] for name in update.trains) // parts
        work = large.step_peak // parts + (min(gradients, 4 * BUCKET) if processes > parts else 0)
        most = max(
            most,
            whole if rows == share and parts == 1 else gradients + activations,
            gradients + work,
        )
        passing = {
            k: max(v, new) for (k, v), new in zip(passing.items(), (gradients, activations, work))
        }
        of_row = min(
            trial.pass_seconds / trial.rows for trial in (small, large)
        )  # the one that was disturbed less
        seconds += often[update] * (of_row * share + min(small.step_seconds, large.step_seconds))
        tried = min(tried, large.rows)
    seconds -= _now(trainer)
    method.after_step(nets, trainer.clock(0))
    state.average()
    seconds += _now(trainer)
    copies = sum(weights[name] for name in state.roles.exports)
    if config.health_every:
        loss = peaks(_loss_alone(trainer, FIRST), _loss_alone(trainer, FIRST + 1), health_rows)[0]
        passing["health"] = copies + loss * bool(health_rows)
    held = {role: size // parts for role, size in _held(trainer, loaded).items()}
    peak = sum(held.values()) + max(most, passing.get("health", 0))
    saved = sum(tensor.nbytes for group in state.saved().values() for tensor in group.values())
    return Plan(
        held, passing, peak, rows, share, tried, precision, seconds, saved, copies * len(config.ema)
    )


class Meter(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside it, behind each operation."""

    def __init__(self) -> None:
        super().__init__()
        self._line, self._now = list[int](), 0
        self._alive: dict[
            int, tuple[int, int, Any]
        ] = {}  # by storage: birth, bytes, a watch on its end

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {
            t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)
        }
        for storage in [t.untyped_storage() for t in tree_leaves(made) if isinstance(t, Tensor)]:
            key, size = storage._cdata, storage.nbytes()
            if key not in given and key not in self._alive:
                self._now += size
                self._alive[key] = (
                    len(self._line),
                    size,
                    weakref.ref(storage, partial(self._gone, key)),
                )
        self._line.append(self._now)
        return made

    def _gone(self, key: int, _: Any) -> None:
        self._now -= self._alive.pop(key)[1]

    def lines(self) -> Tensor:
        """(2, operations): all bytes, and those of what is gone by now."""
        line, born = (
            torch.tensor(self._line, dtype=torch.float64),
            torch.zeros(len(self._line), dtype=torch.float64),
        )
        for birth, size, _ in self._alive.values():
            born[birth] += size
        return torch.stack([line, line - born.cumsum(0)])


class Trial(NamedTuple):
    """An update on some rows: the meter's lines of its pass, the peak of its optimizer step, the
    seconds of both.
    """

    rows: int
    lines: Tensor
    step_peak: int = 0
    pass_seconds: float = 0.0
    step_seconds: float = 0.0


def peaks(small: Trial, large: Trial, rows: int) -> list[int]:
    """The peaks of both lines at that many rows."""
    a, b = small.lines, large.lines
    if a.shape != b.shape:  # what is done depends on the rows: their peaks have to do
        a, b = a.amax(1, keepdim=True), b.amax(1, keepdim=True)
    return (
        (b + (b - a) * ((rows - large.rows) / max(1, large.rows - small.rows)))
        .amax(1)
        .long()
        .tolist()
    )


def _trials(
    trainer: Trainer, update: Update, clock: Clock, place: int, most: int, budget: float
) -> tuple[Trial, Trial]:
    """The last two of trials on more and more rows, up to `most`, while the next is likely to stay
    in bounds.
    """
    begun, rows = time.perf_counter(), min(FIRST, most)
    trainer.rows, trainer.micro = range(rows), rows
    trainer._apply(update, clock, place)  # kernels are chosen, the optimizer makes its state
    once = time.perf_counter() - begun > budget / 10  # in long operations the meter is not felt
    small = large = _trial(trainer, update, clock, place, rows, once)
    while large.rows < most:
        rows = min(most, large.rows + 1 if large is small else 2 * large.rows)
        late = 2 * (time.perf_counter() - begun) > budget  # this one takes as long as all before it
        if large is not small and (late or peaks(small, large, rows)[0] > MOST):
            break
        small, large = large, _trial(trainer, update, clock, place, rows, once)
    return small, large


def _trial(
    trainer: Trainer, update: Update, clock: Clock, place: int, rows: int, once: bool
) -> Trial:
    """For the clock and for the meter: at once, or one after the other."""
    trainer.rows, trainer.micro = range(rows), rows
    lines, times = list[Tensor](), list[float]()
    for metered in (True,) if once else (True, False):
        begun = _now(trainer)
        with Meter() if metered else contextlib.nullcontext() as meter:
            sums = trainer._backward(update, clock, place, 0)
        between = _now(trainer)
        with Meter() if metered else contextlib.nullcontext() as step_meter:
            trainer._step(update, clock, sums)
        times = [between - begun, _now(trainer) - between]
        if meter and step_meter:
            lines = [meter.lines(), step_meter.lines()]
    return Trial(rows, lines[0], int(lines[1][0].amax()), *times)


@torch.no_grad()
def _loss_alone(trainer: Trainer, rows: int) -> Trial:
    """The first update's loss without a gradient."""
    with Meter() as meter:
        batch = trainer.data(0, range(rows), Draws(0, range(rows), device=trainer.device))
        trainer.method.updates(trainer.clock(0))[0].loss(trainer.nets, batch, trainer.clock(0))
    return Trial(rows, meter.lines())


def _now(trainer: Trainer) -> float:
    """Seconds, behind all work of the device."""
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _held(trainer: Trainer, loaded: Iterable[nn.Module]) -> dict[str, int]:
    """Bytes by role; what two roles share belongs to the first."""
    state, found, seen = trainer.state, {}, set[int]()
    roles: dict[str, list[Any]] = {
        name: list(module.state_dict().values()) for name, module in state.modules.items()
    }
    roles |= {
        f"{k}: averages": [t for one in by.values() for t in one.values()]
        for k, by in state.averages.items()
    }
    for name, optimizer in state.optimizers.items():
        roles[f"{name}: optimizer"] = [t for one in optimizer.state.values() for t in one.values()]
    roles["as loaded"] = [
        t for module in loaded for t in module.state_dict().values() if t.device == trainer.device
    ]
    for role, tensors in roles.items():
        storages = {
            t.untyped_storage().data_ptr(): t.nbytes for t in tensors if isinstance(t, Tensor)
        }
        found[role] = sum(size for place, size in storages.items() if place not in seen)
        seen |= set(storages)
    return {role: size for role, size in found.items() if size}
