"""One update of a method's networks on given rows: used by the trainer, the planner and tests."""

from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.choice import kind_of
from fewstep.diffusion.draws import Draws
from fewstep.errors import out_of_memory
from fewstep.learning.dropout import seeded
from fewstep.learning.method import Clock, Data, Losses, Method, Update
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import guarded_step
from fewstep.training.precision import MODES, LossScale
from fewstep.training.processes import World
from fewstep.training.state import State

HIGHEST = torch.finfo(torch.float32).max  # rate: some optimizers fail on more, others overflow


class Sums(NamedTuple):
    """Mean losses of a batch, or a process's shares of them: 0-d tensors on the device.

    total: what the gradients are of. means: its terms and the notes, by name.
    """

    total: Tensor
    means: dict[str, Tensor]


class Updated(NamedTuple):
    """What an update did. numbers: for the log, unread. total: the loss. bad: whether it was left
    out because something was not finite. Both 0-d on the device.
    """

    numbers: dict[str, Tensor | float]
    total: Tensor
    bad: Tensor


class Attempt:
    """`with attempt:` ends quietly where memory runs out inside, and `short` says so.

    final: it cannot be made again, so the error goes on. The error's traceback, which holds
    tensors, is let go behind the block.
    """

    def __init__(self, final: bool):
        self.final, self.short = final, False

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self.short = error is not None and out_of_memory(error) and not self.final
        return self.short


class Step:
    """One optimizer step of the networks that an update trains.

    rows: this process's rows of the global batch. micro: rows of a pass; halved where memory runs
    out. share: rows of the largest share of a process, in all processes the same.
    """

    def __init__(self, method: Method, nets: Any, data: Data, config: TrainerConfig, state: State):
        self.nets, self.data, self.config, self.state = nets, data, config, state
        self.world, self.device = state.world, state.device
        self.rows = self.world.rows(config.batch)
        self.share = -(-config.batch // self.world.size)
        self.micro = min(config.micro_batch or config.batch, self.share)
        self.group = method.group()
        self._learning: tuple[str, ...] | None = None
        if reason := self._cut(kind_of(type(method))):
            raise ValueError(reason)

    def _cut(self, method: str) -> str | None:
        """Why the batch cannot be divided among processes and passes; None where it can."""
        batch, size = self.config.batch, self.world.size
        uneven = self.config.sharding == "full" and batch % size
        if batch < size or uneven:
            return f"trainer.batch={batch} cannot be split among {size} processes"
        passes = self.micro < len(self.rows) and self.micro % self.group
        if self.rows.start % self.group or passes:
            return (
                f"{method} compares {self.group} rows with each other; trainer.batch={batch} in "
                f"{size} processes and passes of {self.micro} rows cut such groups; "
                f"take multiples of it"
            )
        return None

    def __call__(self, update: Update, clock: Clock, index: int, number: int) -> Updated:
        """The update on batch `number`. index: its place among those of the step.

        Where memory runs out it is repeated from clean gradients, on the same noise, in smaller
        passes; with one row (or group) left the error goes on, or is a MemoryError.
        """
        self.let_learn(update.trains)
        while True:
            # What waits for other processes cannot be begun anew by one alone.
            last = self.micro <= self.group and self.world.size == 1
            with Attempt(final=last or self.state.sharded) as passes:
                sums = self.backward(update, clock, index, number)
            if not self.world.max(passes.short):
                with Attempt(final=last or self.world.size > 1) as attempt:
                    return self.descend(update, clock, sums, attempt)
            self._take_less(update.trains)

    def let_learn(self, names: tuple[str, ...]) -> None:
        """Gradients reach these networks and no others."""
        if self._learning != names:
            self.state.learn(names)
            self._learning = names

    def backward(self, update: Update, clock: Clock, index: int, number: int) -> Sums:
        """Adds up this process's gradients, pass by pass; gives its shares of the mean losses.

        The loss is divided by the global batch, so that a sum over all is the gradient of one
        process. With a loss scale the gradients are larger by it until `descend`.
        """
        config = self.config
        factor = self._factor("+".join(update.trains))
        sums = Sums(torch.zeros((), device=self.device), {})
        for first in range(self.rows.start, self.rows.stop, self.micro):
            rows = range(first, min(self.rows.stop, first + self.micro))
            draws = Draws(
                config.seed, rows, stream="loss", step=clock.step, update=index, device=self.device
            )
            seed = hash((config.seed, clock.step, index, first)) & (2**63 - 1)
            with seeded(seed, self.device):
                losses = update.loss(self.nets, self.data(number, rows, draws), clock)
            terms = [term.sum() for term in losses.terms.values()]
            loss = torch.stack(terms).sum() / config.batch
            (loss * factor).backward()
            self._add(sums, losses, loss)
        return sums

    def _factor(self, group: str) -> Tensor:
        """By what the loss is multiplied before its gradient is taken."""
        scales = self.state.scales
        if torch.float16 in MODES[self.config.precision] and group not in scales:
            scales[group] = LossScale(self.device)
        factor = torch.ones((), device=self.device)
        if group in scales:
            factor = scales[group].scale
        if self.state.sharded:  # FSDP2 divides summed gradients by the number of processes
            factor = factor * self.world.size
        return factor

    def _add(self, sums: Sums, losses: Losses, loss: Tensor) -> None:
        sums.total.add_(loss.detach())
        for key, value in {**losses.terms, **losses.notes}.items():
            before = sums.means.get(key, torch.zeros((), device=self.device))
            sums.means[key] = before + value.detach().sum() / self.config.batch

    def descend(
        self, update: Update, clock: Clock, sums: Sums, attempt: Attempt | None = None
    ) -> Updated:
        """Adds up gradients and losses over the processes, divides the loss scale out, clips, and
        steps where everything is finite.

        attempt: it is final as soon as a network has moved, for a second time would move it twice.
        """
        group = "+".join(update.trains)
        scale, state = self.state.scales.get(group), self.state
        gradients = state.gradients(update.trains)
        shared = [] if state.sharded else gradients  # FSDP2 has summed what is sharded
        self.world.sum([sums.total, *sums.means.values(), *shared])
        if scale:
            torch._foreach_mul_(gradients, 1 / scale.scale)
        norm = clip(gradients, self.config.clip, self.world if state.sharded else World())
        bad = ~torch.isfinite(norm + sums.total)
        rate = self.config.schedule(clock)
        for name in update.trains:
            for options in state.optimizers[name].param_groups:
                options["lr"] = min(options["base_lr"] * rate, HIGHEST)
            guarded_step(state.optimizers[name], bad)
            if attempt:
                attempt.final = True
        if scale:
            scale.note(bad)
        state.forget_gradients(update.trains)
        return Updated({**sums.means, f"norm.{group}": norm, "rate": rate}, sums.total, bad)

    def _take_less(self, names: tuple[str, ...]) -> None:
        """Halves the rows of a pass, in whole groups, and lets go of the gradients so far."""
        self.state.forget_gradients(names)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.micro <= self.group:
            unit = "row" if self.group == 1 else "group"
            raise MemoryError(f"out of memory with one {unit} per pass")
        self.micro = max(1, self.micro // 2 // self.group) * self.group


@torch.no_grad()
def clip(gradients: list[Tensor], limit: float, world: World) -> Tensor:
    """Scales the gradients so that their common norm is at most `limit` (0: no limit). Returns the
    norm before.

    world: the processes that hold parts of them; one alone where each has all.
    """
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if world.size > 1:
        square = norm.square()
        world.sum([square])
        norm = square.sqrt()
    if limit:
        torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm
