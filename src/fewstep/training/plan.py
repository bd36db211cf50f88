"""What a run will need, before it begins: memory by role, time, disk. A few rows of it are really
trained for that.

What stays (weights, averages, optimizer states) is counted as it stands. What passes (activations,
temporaries) is recorded operation by operation, on two numbers of rows: the bytes behind each
operation are a straight line in the rows. Their peak is not, for the moment of the peak moves; so
each line is prolonged, and the peak taken then.
"""

import itertools
import math
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fewstep.diffusion.draws import Draws
from fewstep.learning.method import Clock, Update
from fewstep.models.adapters import borrowed
from fewstep.training.config import TrainerConfig, pick_device
from fewstep.training.precision import Precision
from fewstep.training.processes import BUCKET, local
from fewstep.training.step import Step
from fewstep.training.trainer import Trainer

FIRST = 2  # rows of the first trial: with one row some copies are none
MOST = 2 << 30  # bytes that a pass may take on trial
# Seconds for all trials, roughly: the more, the nearer they come to the rows of a pass.
BUDGET = 15.0
# CPUs take 40 times as long for fp16.
STAND_IN: dict[Precision, Precision] = {"fp16": "bf16", "fp16_teacher": "fp32"}


@dataclass(frozen=True)
class Plan:
    """Bytes of each process: held, what stays, by role; passing, what comes and goes, not all at
    once; at the peak.

    trained: parameters that learn, by network. rows: in one pass, of a batch of `share`. tried: the
    rows that `step`, the seconds of a step without health and saving, was measured on, in this
    precision and with so many threads. checkpoint, student: bytes on the disk.
    """

    held: Mapping[str, int]
    passing: Mapping[str, int]
    peak: int
    trained: Mapping[str, int]
    rows: int
    share: int
    tried: int
    precision: Precision
    step: float
    checkpoint: int
    student: int
    threads: int


def planned_precision(config: TrainerConfig) -> Precision:
    """The arithmetic in which a plan is measured: a CPU would take too long for fp16."""
    stand_in = STAND_IN if pick_device(config.device).type == "cpu" else {}
    return stand_in.get(config.precision, config.precision)


def planned(
    trainer: Trainer, processes: int, health_rows: int, loaded: Mapping[str, Sequence[nn.Module]]
) -> Plan:
    """The plan of a run. trainer: alone, of a few rows of the run's shape, whatever they hold,
    with the run's configuration but `planned_precision` and nothing compiled. Its networks are
    trained on.

    health_rows: that health evaluates the loss on. loaded: what the run keeps beside the networks
    of the method, by role; it counts where it is on the trainer's device. With sharding each role
    is divided evenly; the block that is gathered at a time is not counted.
    """
    config, state = trainer.config, trainer.state
    share = math.ceil(config.batch / processes)
    rows = min(config.micro_batch or share, share)
    weights = {name: _bytes(leaves.values()) for name, leaves in state.leaves.items()}
    shares = Shares(weights, rows, share, processes, config.sharding == "full")
    updates = _updates(trainer)
    most, seconds, tried = 0, 0.0, rows
    passing = {"gradients": 0, "activations": 0, "optimizer's work": 0}
    for update, (clock, place, often) in updates.items():
        small, large = _trials(trainer, update, clock, place, rows, BUDGET / len(updates))
        peak, needs = shares.of(update, small, large)
        most = max(most, peak)
        for key, size in needs.items():
            passing[key] = max(passing[key], size)
        # The one that was disturbed less.
        of_row = min(small.pass_seconds / small.rows, large.pass_seconds / large.rows)
        seconds += often * (of_row * share + min(small.step_seconds, large.step_seconds))
        tried = min(tried, large.rows)
    seconds += _seconds_behind_updates(trainer)
    copies = sum(weights[name] for name in state.roles.exports)
    if config.health_every:
        passing["health"] = copies
        if health_rows:
            small, large = _loss_alone(trainer, FIRST), _loss_alone(trainer, FIRST + 1)
            passing["health"] += peaks(small, large, health_rows)[0]
    held = {role: size // shares.parts for role, size in by_role(trainer, loaded).items()}
    peak = sum(held.values()) + max(most, passing.get("health", 0))
    saved = sum(_bytes(group.values()) for group in state.saved().values())
    student = sum(_bytes_saved(state.modules[name]) for name in state.roles.exports)
    student *= len(config.ema)
    trained = {}
    for name in state.roles.trains:
        trained[name] = sum(p.numel() for p in state.leaves[name].values())
    step = config.precision, seconds
    threads = torch.get_num_threads()
    return Plan(held, passing, peak, trained, rows, share, tried, *step, saved, student, threads)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _bytes_saved(module: nn.Module) -> int:
    """Of a network in a file, in float32 at least; of additions to a base their own file, too."""
    size = 0
    for tensor in module.state_dict().values():
        width = max(4, tensor.itemsize) if tensor.is_floating_point() else tensor.itemsize
        size += tensor.numel() * width
    return size


def _updates(trainer: Trainer) -> dict[Update, tuple[Clock, int, float]]:
    """The different updates of a run: when each comes first, its place among those of that step,
    and how often it comes in a mean step.
    """
    found: dict[Update, tuple[Clock, int, float]] = {}
    for begin, end in itertools.pairwise(trainer.phases):
        clock = trainer.clock(begin)
        for place, update in enumerate(trainer.method.updates(clock)):
            first, at, often = found.get(update, (clock, place, 0.0))
            found[update] = first, at, often + (end - begin) / trainer.config.steps
    return found


def _seconds_behind_updates(trainer: Trainer) -> float:
    """Of what moves slow copies and averages, once a step."""
    begun = _now(trainer)
    trainer.method.after_step(trainer.nets, trainer.clock(0))
    trainer.state.average(0)
    return _now(trainer) - begun


class Shares(NamedTuple):
    """How a process has part in an update. weights: bytes by network. rows: of a pass, out of the
    `share` of a process.
    """

    weights: Mapping[str, int]
    rows: int
    share: int
    processes: int
    sharded: bool

    @property
    def parts(self) -> int:
        """Into how many the networks are split."""
        return self.processes if self.sharded else 1

    def of(self, update: Update, small: "Trial", large: "Trial") -> tuple[int, dict[str, int]]:
        """(bytes at the peak of an update, bytes of what passes in it)."""
        whole, activations = peaks(small, large, self.rows)
        gradients = sum(self.weights[name] for name in update.trains) // self.parts
        work = large.step_peak // self.parts
        if self.processes > self.parts:  # a bucket of gradients is summed at a time
            work += min(gradients, 4 * BUCKET)
        # A second pass finds the gradients of the first.
        alone = self.rows == self.share and self.parts == 1
        in_pass = whole if alone else gradients + activations
        needs = {"gradients": gradients, "activations": activations, "optimizer's work": work}
        return max(in_pass, gradients + work), needs


class Meter(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside it, behind each operation."""

    def __init__(self) -> None:
        super().__init__()
        self._line: list[int] = []
        self._now = 0
        # By storage: birth, bytes, a watch on its end.
        self._alive: dict[int, tuple[int, int, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(made):
            key, size = storage._cdata, storage.nbytes()
            if key not in given and key not in self._alive:
                self._now += size
                end = weakref.ref(storage, partial(self._gone, key))
                self._alive[key] = len(self._line), size, end
        self._line.append(self._now)
        return made

    def _gone(self, key: int, _: Any) -> None:
        self._now -= self._alive.pop(key)[1]

    def lines(self) -> Tensor:
        """(2, operations): all bytes, and those of what is gone by now."""
        line = torch.tensor(self._line, dtype=torch.float64)
        born = torch.zeros(len(self._line), dtype=torch.float64)
        for birth, size, _ in self._alive.values():
            born[birth] += size
        return torch.stack([line, line - born.cumsum(0)])


def _storages(tree: Any) -> list[Any]:
    """The storages of the tensors in nested values."""
    return [one.untyped_storage() for one in tree_leaves(tree) if isinstance(one, Tensor)]


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
    steps = (rows - large.rows) / max(1, large.rows - small.rows)
    found: list[int] = (b + (b - a) * steps).amax(1).long().tolist()
    return found


def _trials(
    trainer: Trainer, update: Update, clock: Clock, place: int, most: int, budget: float
) -> tuple[Trial, Trial]:
    """The last two of trials on more and more rows, up to `most`, while the next is likely to stay
    in bounds.
    """
    begun, rows = time.perf_counter(), min(FIRST, most)
    _set_rows(trainer.step, rows)
    trainer.step(update, clock, place, 0)  # kernels are chosen, the optimizer makes its state
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
    _set_rows(trainer.step, rows)
    trial = _metered(trainer, update, clock, place)
    if once:
        return trial
    begun = _now(trainer)
    sums = trainer.step.backward(update, clock, place, 0)
    between = _now(trainer)
    trainer.step.descend(update, clock, sums)
    return trial._replace(pass_seconds=between - begun, step_seconds=_now(trainer) - between)


def _metered(trainer: Trainer, update: Update, clock: Clock, place: int) -> Trial:
    begun = _now(trainer)
    with Meter() as meter:
        sums = trainer.step.backward(update, clock, place, 0)
    between = _now(trainer)
    with Meter() as step_meter:
        trainer.step.descend(update, clock, sums)
    ended = _now(trainer)
    step_peak = int(step_meter.lines()[0].amax())
    return Trial(len(trainer.step.rows), meter.lines(), step_peak, between - begun, ended - between)


def _set_rows(step: Step, rows: int) -> None:
    """Its next updates are of so many rows, in one pass."""
    step.rows, step.micro = range(rows), rows


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


def by_role(trainer: Trainer, loaded: Mapping[str, Sequence[nn.Module]]) -> dict[str, int]:
    """Bytes of what stays between steps in this process, by role; what two roles share belongs to
    the first.
    """
    found: dict[str, int] = {}
    seen: set[int] = set()
    for role, tensors in _roles(trainer, loaded).items():
        size = 0
        mine = [local(one) for one in tree_leaves(tensors) if isinstance(one, Tensor)]
        for storage in _storages(mine):
            if storage.data_ptr() not in seen:
                size += storage.nbytes()
                seen.add(storage.data_ptr())
        if size:
            found[role] = size
    return found


def _roles(trainer: Trainer, loaded: Mapping[str, Sequence[nn.Module]]) -> dict[str, list[Any]]:
    """What a run keeps, by role."""
    state = trainer.state
    roles: dict[str, list[Any]] = {"shared base": []}
    for module in state.modules.values():
        roles["shared base"] += borrowed(module)
    for name, module in state.modules.items():
        roles[name] = list(module.state_dict().values())
    for name, averages in state.averages.items():
        roles[f"{name}: averages"] = [list(average.values()) for average in averages.values()]
    for name, optimizer in state.optimizers.items():
        roles[f"{name}: optimizer"] = [list(one.values()) for one in optimizer.state.values()]
    for role, modules in loaded.items():
        roles[role] = []
        for module in modules:
            tensors = module.state_dict().values()
            roles[role] += [t for t in tensors if t.device == trainer.device]
    return roles
