"""The loop. It knows the contract of methods (learning/method.py) and no method."""

import copy
import dataclasses
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.draws import Draws
from fewstep.errors import DivergedError, RefusedError
from fewstep.files import remove_leftovers, write_json
from fewstep.learning.averaging import lerp
from fewstep.learning.batch import Batch
from fewstep.learning.dropout import seeded
from fewstep.learning.method import Clock, Method, Update
from fewstep.training.checkpoint import Checkpoints, Saved
from fewstep.training.config import TrainerConfig, difference, pick_device
from fewstep.training.log import Log
from fewstep.training.optimizers import clip, guarded_step

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


class Trainer:
    """Trains the networks of a method on data.

    folder: of the run, for checkpoints, log and status; None keeps everything in memory.
    """

    def __init__(self, method: Method, nets: Any, data: Data, config: TrainerConfig, folder: Path | None = None):
        self.method, self.nets, self.data, self.config, self.folder = method, nets, data, config, folder
        self.device = pick_device(config.device)
        self.modules: dict[str, nn.Module] = {f.name: getattr(nets, f.name) for f in dataclasses.fields(nets)}
        self.batches = 0
        self.flags = torch.zeros(WINDOW, dtype=torch.bool, device=self.device)
        self._numbers = [0] * WINDOW  # the first batch number of each step in the window
        self._stop: int | None = None
        self._trained: tuple[str, ...] | None = None
        if unknown := sorted(set(config.optimizers) - set(method.trains)):
            trained = ", ".join(method.trains)
            raise ValueError(f"trainer.optimizers: the method trains {trained}, not {', '.join(unknown)}")
        kept = set(method.trains) | set(method.moves)
        for name, module in self.modules.items():
            module.to(self.device).train(name in kept).requires_grad_(name in method.trains)
            if isinstance(module, Denoiser):
                module.autocast = torch.bfloat16 if config.precision == "bf16" else None
        self._new_optimizers()
        self._new_averages()
        starts = tuple(method.phases(config.steps))
        assert sorted({0, *starts}) == list(starts), f"phases must begin at 0 and rise: {starts}"
        self._phases = (*starts, config.steps)

    def clock(self, step: int) -> Clock:
        """Where step `step` (counted from 0) stands."""
        phase = max(i for i, first in enumerate(self._phases[:-1]) if first <= step)
        first, after = self._phases[phase], self._phases[phase + 1]
        return Clock(step, self.config.steps, self.config.batch, phase, step - first, after - first)

    def fit(self, watch: Watch | None = None, probe: Probe | None = None, say: Callable[[str], None] = print) -> None:
        """Trains from the newest checkpoint, or from the beginning, to the last step.

        Raises DivergedError, RefusedError (a checkpoint that does not fit), SystemExit behind SIGINT or SIGTERM.
        """
        config = self.config
        if self.folder is not None:
            remove_leftovers(self.folder)
        checkpoints = None if self.folder is None else Checkpoints(self.folder / "checkpoints", config.keep, say)
        start = self._resume(checkpoints)
        log = None if self.folder is None else Log(self.folder / "log.jsonl", start)
        with self._signals():
            for step in range(start, config.steps):
                clock, done = self.clock(step), step + 1
                if step and clock.phase_step == 0:
                    self._new_optimizers()
                    self._new_averages()
                self.flags[step % WINDOW] = False
                self._numbers[step % WINDOW] = self.batches
                values: dict[str, Tensor | float] = {}
                for i, update in enumerate(self.method.updates(clock)):
                    values |= self._apply(update, clock, i)
                values["skipped"] = self.flags[step % WINDOW].float()
                self.method.after_step(self.nets, clock)
                self._average()
                last, stop = done == config.steps, self._stop  # a signal that comes later belongs to the next step
                if probe and config.health_every and (done % config.health_every == 0 or last):
                    values |= probe(self.clock(step), {name: self.exported(name) for name in self.method.exports})
                if log:
                    log.add(done, values)
                ends = last or stop is not None
                due = ends or done % config.log_every == 0
                save = checkpoints and (ends or (config.save_every and done % config.save_every == 0))
                if due or save:
                    lines = log.flush() if log else []
                    if watch and lines:
                        watch(done, lines[-1])
                    self._check_skips(step)
                    self._status("running", done)
                if save:
                    assert checkpoints
                    checkpoints.save(done, self._saved())
                if watch:
                    watch(done, None)
                if stop is not None and not last:
                    self._status("stopped", done, f"signal {stop}")
                    raise SystemExit(128 + stop)
        self._status("trained", config.steps)

    def exported(self, name: str, decay: float | None = None) -> nn.Module:
        """A frozen copy of an exported network with its average (default: of the first decay)."""
        average = self.averages[name][self.config.ema[0] if decay is None else decay]
        module = copy.deepcopy(self.modules[name]).eval().requires_grad_(False)
        with torch.no_grad():
            for key, parameter in module.named_parameters():
                parameter.copy_(average[key])
        return module

    def _apply(self, update: Update, clock: Clock, index: int) -> dict[str, Tensor | float]:
        """One optimizer step on the next batch; returns the batch's mean losses, the gradient norm and the rate."""
        config = self.config
        if self._trained != update.trains:
            for name in self.method.trains:
                self.modules[name].requires_grad_(name in update.trains)
            self._trained = update.trains
        number, self.batches = self.batches, self.batches + 1
        sums: dict[str, Tensor] = {}
        total = torch.zeros((), device=self.device)
        for first in range(0, config.batch, micro := config.micro_batch or config.batch):
            rows = range(first, min(config.batch, first + micro))
            draws = Draws(config.seed, rows, stream="loss", step=clock.step, update=index, device=self.device)
            with seeded(hash((config.seed, clock.step, index, first)) & (2**63 - 1), self.device):
                losses = update.loss(self.nets, self.data(number, rows, draws), clock)
            loss = torch.stack([term.sum() for term in losses.terms.values()]).sum() / config.batch
            loss.backward()
            total += loss.detach()
            for key, value in {**losses.terms, **losses.notes}.items():
                sums[key] = sums.get(key, torch.zeros((), device=self.device)) + value.detach().sum() / config.batch
        parameters = [p for name in update.trains for p in self.modules[name].parameters()]
        norm = clip(parameters, config.clip)
        bad = ~torch.isfinite(norm + total)
        factor = config.schedule(clock)
        for name in update.trains:
            for group in self.optimizers[name].param_groups:
                group["lr"] = group["base_lr"] * factor
            guarded_step(self.optimizers[name], bad)
            self.optimizers[name].zero_grad(set_to_none=True)
        self.flags[clock.step % WINDOW] |= bad
        return {**sums, f"norm.{'+'.join(update.trains)}": norm, "rate": factor}

    def _average(self) -> None:
        for name in self.method.exports:
            parameters = dict(self.modules[name].named_parameters())
            for decay, average in self.averages[name].items():
                lerp(list(average.values()), list(parameters.values()), 1 - decay)

    def _new_optimizers(self) -> None:
        self.optimizers = {}
        for name in self.method.trains:
            spec = self.config.optimizers.get(name, self.config.optimizer)
            optimizer = spec.build(list(self.modules[name].parameters()))
            for group in optimizer.param_groups:
                group["base_lr"] = spec.lr
            self.optimizers[name] = optimizer

    def _new_averages(self) -> None:
        self.averages = {
            name: {
                decay: {k: p.detach().clone() for k, p in self.modules[name].named_parameters()}
                for decay in self.config.ema
            }
            for name in self.method.exports
        }

    def _check_skips(self, step: int) -> None:
        """Reads the counters of non-finite steps; too many end the run with what is needed to look into them."""
        bad = self.flags.nonzero()[:, 0].tolist()
        if len(bad) <= self.config.max_skips:
            return
        rows = range(self.config.batch)
        steps = sorted(step - (step - place) % WINDOW for place in bad)
        batches = {}
        for s in steps:
            first = self._numbers[s % WINDOW]
            numbers = range(first, first + len(self.method.updates(self.clock(s))))
            batches[str(s + 1)] = [i for number in numbers for i in self.data.ids(number, rows).tolist()]
        dump = {"seed": self.config.seed, "steps": [s + 1 for s in steps], "batches": batches}
        if self.folder is not None:
            write_json(self.folder / "diverged.json", dump)
        limit = self.config.max_skips
        reason = f"{len(bad)} of the last {WINDOW} steps had a non-finite loss or gradient (max_skips={limit})"
        self._status("diverged", step + 1, reason)
        raise DivergedError(f"{reason}; a lower learning rate is the usual remedy, diverged.json names the batches")

    def _saved(self) -> Saved:
        kept = (*self.method.trains, *self.method.moves)
        nets = {name: self.modules[name].state_dict() for name in kept}
        optim = {name: optimizer.state_dict()["state"] for name, optimizer in self.optimizers.items()}
        return Saved({"nets": _flat(nets), "ema": _flat(self.averages), "optim": _flat(optim)}, self._facts())

    def _facts(self) -> dict[str, Any]:
        free = TrainerConfig.free
        return {
            "method": self.method.dump(),
            "trainer": {k: v for k, v in self.config.dump().items() if k not in free},
            "data": self.data.fingerprint,
            "batches": self.batches,
            "skipped": self.flags.nonzero()[:, 0].tolist(),
            "numbers": self._numbers,
            "setting": {"threads": torch.get_num_threads(), "torch": str(torch.__version__)},
        }

    def _resume(self, checkpoints: Checkpoints | None) -> int:
        saved = checkpoints.newest() if checkpoints else None
        if saved is None:
            return 0
        tensors, facts = saved
        mine = self._facts()
        for key in ("method", "trainer", "data"):
            if facts[key] != mine[key]:
                raise RefusedError(
                    f"the checkpoint was made with another {key}: {difference(facts[key], mine[key])}; "
                    "--restart begins at step 0"
                )
        groups = _by_owner(tensors["nets"])
        for name in (*self.method.trains, *self.method.moves):
            self.modules[name].load_state_dict(groups[name], strict=True)
        for name, by_decay in _by_owner(tensors["ema"]).items():
            for decay, average in _by_owner(by_decay).items():
                for k, v in self.averages[name][float(decay)].items():  # in its own order, which a file does not keep
                    v.copy_(average[k])
        for name, by_index in _by_owner(tensors["optim"]).items():
            state = {int(i): values for i, values in _by_owner(by_index).items()}
            groups_now = self.optimizers[name].state_dict()["param_groups"]
            self.optimizers[name].load_state_dict({"state": state, "param_groups": groups_now})
        self.batches = facts["batches"]
        self._numbers = list(facts["numbers"])
        self.flags[facts["skipped"]] = True
        return int(facts["step"])

    def _status(self, state: str, step: int, reason: str = "") -> None:
        if self.folder is not None:
            write_json(
                self.folder / "status.json",
                {"state": state, "step": step, "steps": self.config.steps, "reason": reason},
            )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the run behind the current step, with a checkpoint; a second one ends it at once."""

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


def _flat(nested: Mapping[Any, Any], path: str = "") -> dict[str, Tensor]:
    """Tensors of nested mappings by their path, with slashes."""
    tensors: dict[str, Tensor] = {}
    for key, value in nested.items():
        tensors |= {f"{path}{key}": value} if isinstance(value, Tensor) else _flat(value, f"{path}{key}/")
    return tensors


def _by_owner(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Splits keys at their first slash."""
    owners: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        owner, _, rest = key.partition("/")
        owners.setdefault(owner, {})[rest] = tensor
    return owners
