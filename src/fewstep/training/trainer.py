"""The loop. It knows the contract of methods (learning/method.py) and no method."""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fewstep.choice import kind_of
from fewstep.diffusion.draws import Draws
from fewstep.errors import DivergedError, RefusedError, out_of_memory
from fewstep.files import remove_leftovers, write_json
from fewstep.learning.batch import Batch
from fewstep.learning.dropout import seeded
from fewstep.learning.method import Clock, Method, Update
from fewstep.learning.roles import roles_of
from fewstep.training.checkpoint import Checkpoints, Saved
from fewstep.training.config import TrainerConfig, difference, pick_device
from fewstep.training.log import Log
from fewstep.training.optimizers import clip, guarded_step
from fewstep.training.precision import MODES, LossScale
from fewstep.training.processes import World
from fewstep.training.state import State

WINDOW = 100  # steps over which skipped ones are counted


class Data(Protocol):
    """What the trainer asks of the data: any rows of any batch, by number."""

    fingerprint: str

    def __call__(self, number: int, rows: range, draws: Draws) -> Batch:
        """Rows of batch `number`, on the device of the draws."""
        ...

    def ids(self, number: int, rows: range) -> Tensor:
        """Which samples those are."""
        ...


Watch = Callable[[int, Mapping[str, Any] | None], None]
Probe = Callable[[Clock, Mapping[str, nn.Module]], Mapping[str, float]]
Gallery = Callable[[Clock, Mapping[str, nn.Module]], None]


class Trainer:
    """Trains the networks of a method on data.

    folder: of the run, for checkpoints, log and status; None keeps everything in memory. world: the
    processes that train together; all of them call the same methods.
    """

    def __init__(
        self,
        method: Method,
        nets: Any,
        data: Data,
        config: TrainerConfig,
        folder: Path | None = None,
        world: World | None = None,
    ):
        self.method, self.nets, self.data, self.config, self.folder = (
            method,
            nets,
            data,
            config,
            folder,
        )
        self.world = world or World()
        self.device = pick_device(config.device)
        self.batches = 0
        self.rows = self.world.rows(config.batch)
        self._share = -(
            -config.batch // self.world.size
        )  # the same in all processes, also where the batch is odd
        self.micro = min(config.micro_batch or config.batch, self._share)
        if config.batch < self.world.size or (
            config.sharding == "full" and config.batch % self.world.size
        ):
            raise ValueError(
                f"trainer.batch={config.batch} cannot be split among {self.world.size} processes"
            )
        self._group = method.group()
        if self.rows.start % self._group or (
            self.micro < len(self.rows) and self.micro % self._group
        ):
            raise ValueError(
                f"{kind_of(type(method))} compares {self._group} rows with each other; "
                f"trainer.batch={config.batch} in "
                f"{self.world.size} processes and passes of {self.micro} rows cut such groups; "
                f"take multiples of it"
            )
        self.flags = torch.zeros(WINDOW, dtype=torch.bool, device=self.device)
        self._numbers = [0] * WINDOW  # the first batch number of each step in the window
        self._stop: int | None = None
        self._trained: tuple[str, ...] | None = None
        trains = roles_of(nets).trains
        if unknown := sorted(set(config.optimizers) - set(trains)):
            trained = ", ".join(trains)
            raise ValueError(
                f"trainer.optimizers: the method trains {trained}, not {', '.join(unknown)}"
            )
        self.state = State(method, nets, config, self.device, self.world)
        starts = tuple(method.phases(config.steps))
        assert sorted({0, *starts}) == list(starts), f"phases must begin at 0 and rise: {starts}"
        self._phases = (*starts, config.steps)

    def clock(self, step: int) -> Clock:
        """Where step `step` (counted from 0) stands."""
        phase = max(i for i, first in enumerate(self._phases[:-1]) if first <= step)
        first, after = self._phases[phase], self._phases[phase + 1]
        return Clock(step, self.config.steps, self.config.batch, phase, step - first, after - first)

    def fit(
        self,
        watch: Watch | None = None,
        probe: Probe | None = None,
        say: Callable[[str], None] = print,
        gallery: Gallery | None = None,
    ) -> None:
        """Trains from the newest checkpoint, or from the beginning, to the last step. probe,
        gallery: what measures and what shows the averaged networks now and then.

        Raises DivergedError, RefusedError (a checkpoint that does not fit), SystemExit behind
        SIGINT or SIGTERM.
        """
        config = self.config
        leads = self.world.leads
        if self.folder is not None and leads:
            remove_leftovers(self.folder)
        checkpoints = (
            None
            if self.folder is None
            else Checkpoints(self.folder / "checkpoints", config.keep, say, leads)
        )
        start = self._resume(checkpoints, say)
        log = Log(self.folder / "log.jsonl", start) if self.folder is not None and leads else None
        with self._signals():
            for step in range(start, config.steps):
                clock, done = self.clock(step), step + 1
                if step and clock.phase_step == 0:
                    self.state.restart()
                self.flags[step % WINDOW].zero_()  # the host would wait while it sends "= False"
                self._numbers[step % WINDOW] = self.batches
                values: dict[str, Tensor | float] = {}
                for i, update in enumerate(self.method.updates(clock)):
                    values |= self._apply(update, clock, i)
                values["skipped"] = self.flags[step % WINDOW].float()
                self.method.after_step(self.nets, clock)
                self.state.average()
                # A signal that comes later belongs to the next step.
                last, stop = done == config.steps, self.world.most(self._stop or 0)
                if probe and _due(config.health_every, done, last):
                    values |= probe(clock, self._exported())
                if gallery and _due(config.sample_every, done, last):
                    gallery(clock, self._exported())
                if log:
                    log.add(done, values)
                ends = last or stop > 0
                due = ends or done % config.log_every == 0
                save = checkpoints and (
                    ends or (config.save_every and done % config.save_every == 0)
                )
                if due or save:
                    lines = log.flush() if log else []
                    if watch and lines:
                        watch(done, lines[-1])
                    self._check_skips(step)
                    self._status("running", done)
                if save:
                    assert checkpoints
                    saved = Saved(
                        self.state.saved(), self._facts()
                    )  # gathers what is sharded, so every process asks for it
                    self.world.first(lambda: checkpoints.save(done, saved))  # noqa: B023
                if watch:
                    watch(done, None)
                if stop and not last:
                    self._status("stopped", done, f"signal {stop}")
                    raise SystemExit(128 + stop)
        self._status("trained", config.steps)

    def _exported(self) -> dict[str, nn.Module]:
        return {name: self.state.exported(name) for name in self.state.roles.exports}

    def _apply(self, update: Update, clock: Clock, index: int) -> dict[str, Tensor | float]:
        """One optimizer step on the next batch; returns the batch's mean losses, the gradient norm
        and the rate.

        Where memory runs out it is repeated from clean gradients, on the same noise, in smaller
        micro-batches.
        """
        if self._trained != update.trains:
            for name in self.state.roles.trains:
                self.state.modules[name].requires_grad_(name in update.trains)
            self._trained = update.trains
        number, self.batches = self.batches, self.batches + 1
        while True:
            work = partial(self._backward, update, clock, index, number)
            sums = self._unless_out_of_memory(work, meets=self.state.sharded)
            if not self.world.most(sums is None) and sums is not None:
                values = self._unless_out_of_memory(
                    partial(self._step, update, clock, sums), meets=self.world.size > 1
                )
                if values is not None:
                    return values
            self.state.forget_gradients(update.trains)
            if self.micro <= self._group:
                raise MemoryError(
                    "out of memory with one row per pass"
                    if self._group == 1
                    else "out of memory with one group per pass"
                )
            self.micro = max(1, self.micro // 2 // self._group) * self._group

    def _unless_out_of_memory(
        self, work: Callable[[], dict[str, Any]], meets: bool
    ) -> dict[str, Any] | None:
        """What `work` gives, or None where memory ran out; the error's traceback, which holds
        tensors, is let go.

        meets: processes wait for each other within the work, so one alone cannot begin it anew.
        """
        self._stepped = False
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            last = self.micro <= self._group and self.world.size == 1
            if not out_of_memory(error) or self._stepped or meets or last:
                raise
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _backward(self, update: Update, clock: Clock, index: int, number: int) -> dict[str, Tensor]:
        """This process's gradients and its shares of the batch's mean losses; "" is their sum."""
        config, group, scales = self.config, "+".join(update.trains), self.state.scales
        if torch.float16 in MODES[config.precision] and group not in scales:
            scales[group] = LossScale(self.device)
        factor = scales[group].scale if group in scales else torch.ones((), device=self.device)
        if self.state.sharded:
            factor = (
                factor * self.world.size
            )  # FSDP2 divides summed gradients by the number of processes
        sums = {"": torch.zeros((), device=self.device)}
        for first in range(self.rows.start, self.rows.stop, self.micro):
            rows = range(first, min(self.rows.stop, first + self.micro))
            draws = Draws(
                config.seed, rows, stream="loss", step=clock.step, update=index, device=self.device
            )
            with seeded(hash((config.seed, clock.step, index, first)) & (2**63 - 1), self.device):
                losses = update.loss(self.nets, self.data(number, rows, draws), clock)
            loss = torch.stack([term.sum() for term in losses.terms.values()]).sum() / config.batch
            (loss * factor).backward()
            sums[""] += loss.detach()
            for key, value in {**losses.terms, **losses.notes}.items():
                sums[key] = (
                    sums.get(key, torch.zeros((), device=self.device))
                    + value.detach().sum() / config.batch
                )
        return sums

    def _step(
        self, update: Update, clock: Clock, sums: dict[str, Tensor]
    ) -> dict[str, Tensor | float]:
        """Averages over the processes, clips, steps where everything is finite."""
        group, scale = "+".join(update.trains), self.state.scales.get("+".join(update.trains))
        gradients = self.state.gradients(update.trains)
        self.world.sum([*sums.values(), *([] if self.state.sharded else gradients)])
        if scale:
            torch._foreach_mul_(gradients, 1 / scale.scale)
        norm = clip(gradients, self.config.clip, self.world if self.state.sharded else World())
        bad = ~torch.isfinite(norm + sums.pop(""))
        factor = self.config.schedule(clock)
        for name in update.trains:
            for options in self.state.optimizers[name].param_groups:
                options["lr"] = options["base_lr"] * factor
            guarded_step(self.state.optimizers[name], bad)
            self._stepped = True
        if scale:
            scale.note(bad)
        self.state.forget_gradients(update.trains)
        self.flags[clock.step % WINDOW] |= bad
        return {**sums, f"norm.{group}": norm, "rate": factor}

    def _check_skips(self, step: int) -> None:
        """Reads the counters of non-finite steps; too many end the run with what is needed to look
        into them.
        """
        bad = self.flags.nonzero()[:, 0].tolist()
        if len(bad) <= self.config.max_skips:
            return
        rows = range(self.config.batch)
        steps = sorted(step - (step - place) % WINDOW for place in bad)
        batches = {}
        for s in steps:
            first = self._numbers[s % WINDOW]
            numbers = range(first, first + len(self.method.updates(self.clock(s))))
            batches[str(s + 1)] = [
                i for number in numbers for i in self.data.ids(number, rows).tolist()
            ]
        dump = {"seed": self.config.seed, "steps": [s + 1 for s in steps], "batches": batches}
        if self.folder is not None and self.world.leads:
            write_json(self.folder / "diverged.json", dump)
        limit = self.config.max_skips
        reason = (
            f"{len(bad)} of the last {WINDOW} steps had a non-finite loss or gradient "
            f"(max_skips={limit})"
        )
        self._status("diverged", step + 1, reason)
        raise DivergedError(
            f"{reason}; a lower learning rate is the usual remedy, diverged.json names the batches"
        )

    def _facts(self) -> dict[str, Any]:
        free = TrainerConfig.free
        return {
            "method": self.method.dump(),
            "trainer": {k: v for k, v in self.config.dump().items() if k not in free},
            "data": self.data.fingerprint,
            "batches": self.batches,
            "skipped": self.flags.nonzero()[:, 0].tolist(),
            "numbers": self._numbers,
            "setting": {
                "processes": self.world.size,
                "sharding": self.config.sharding,
                "micro_batch": self.micro if self.micro < self._share else 0,
                "threads": torch.get_num_threads(),
                "device": self.device.type,
                "torch": str(torch.__version__),
            },
        }

    def _resume(self, checkpoints: Checkpoints | None, say: Callable[[str], None]) -> int:
        """Loads the newest checkpoint that is whole; returns its step. All processes read it from
        the run's folder.
        """
        step = self.world.first(checkpoints.newest) if checkpoints else None
        if checkpoints is None or step is None:
            return 0
        tensors, facts = checkpoints.load(step)
        mine = self._facts()
        for key in ("method", "trainer", "data"):
            if facts[key] != mine[key]:
                raise RefusedError(
                    f"the checkpoint was made with another {key}: "
                    f"{difference(facts[key], mine[key])}; "
                    "--restart begins at step 0"
                )
        if self.config.micro_batch == 0:
            self.micro = min(
                self.micro, facts["setting"]["micro_batch"] or self.micro
            )  # what memory allowed
        if changed := difference(facts["setting"], self._facts()["setting"]):
            say(
                f"going on in another setting ({changed}): the same data and noise, not the same "
                f"bits"
            )
        self.state.load(tensors)
        self.batches = facts["batches"]
        self._numbers = list(facts["numbers"])
        self.flags[facts["skipped"]] = True
        return step

    def _status(self, state: str, step: int, reason: str = "") -> None:
        if self.folder is not None and self.world.leads:
            write_json(
                self.folder / "status.json",
                {"state": state, "step": step, "steps": self.config.steps, "reason": reason},
            )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the run behind the current step, with a checkpoint; a second one
        ends it at once.
        """

        def note(number: int, frame: Any) -> None:
            if self._stop is not None:
                raise SystemExit(128 + number)
            self._stop = number

        try:
            before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: its owner handles signals
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _due(every: int, done: int, last: bool) -> bool:
    """Whether what is done `every` so many steps (0: never), and behind the last one, is to be done
    now.
    """
    return every > 0 and (last or done % every == 0)
