"""The loop. It knows the contract of methods (learning/method.py) and no method."""

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.choice import plain
from fewstep.errors import RefusedError
from fewstep.learning.method import Clock, Data, Method
from fewstep.learning.roles import roles_of
from fewstep.training.checkpoint import CheckpointContent, Checkpoints
from fewstep.training.config import TrainerConfig, difference, pick_device
from fewstep.training.doubts import doubts
from fewstep.training.log import Log
from fewstep.training.longer import check_longer, clock_at
from fewstep.training.observers import Guard, Reading, RunLog, SaveEvery, Status
from fewstep.training.processes import World
from fewstep.training.run_folder import RunFolder
from fewstep.training.seen import Observer, Seen
from fewstep.training.signals import Signals, StoppedError
from fewstep.training.skips import Skips
from fewstep.training.spikes import ROLL_BACKS, SpikeError, Spikes
from fewstep.training.start import renewed
from fewstep.training.state import State
from fewstep.training.step import Step
from fewstep.training.threads import settle, threads_kept


class Trainer:
    """Trains the networks of a method on data.

    nets: handed over; they are moved, cast, sharded and set to train in place (`State`). folder: of
    the run, for checkpoints, log and status; None keeps everything in memory. world: the processes
    that train together; all of them call the same methods. contents: what the result depends on
    beside options and data, the teacher for one, by name (`start.content`); a run that goes on must
    have the same.
    """

    def __init__(
        self,
        method: Method,
        nets: Any,
        data: Data,
        config: TrainerConfig,
        folder: Path | None = None,
        world: World | None = None,
        contents: Mapping[str, Any] | None = None,
    ):
        self.contents = dict(contents or {})
        self.method, self.nets, self.data, self.config = method, nets, data, config
        self.world = world or World()
        self.folder = None if folder is None else RunFolder(folder, self.world)
        self.device = pick_device(config.device)
        trains = roles_of(nets).trains
        if unknown := sorted(set(config.optimizers) - set(trains)):
            raise ValueError(
                f"trainer.optimizers: the method trains {', '.join(trains)}, "
                f"not {', '.join(unknown)}"
            )
        self.state = State(method, nets, config, self.device, self.world)
        self.step = Step(method, nets, data, config, self.state)
        self.batches = 0  # that were drawn so far
        self.skips = Skips(self.device)
        self.spikes, self.roll_backs = Spikes(self.world), 0
        starts = tuple(method.phases(config.steps))
        assert sorted({0, *starts}) == list(starts), f"phases must begin at 0 and rise: {starts}"
        self.phases = (*starts, config.steps)

    def clock(self, step: int) -> Clock:
        """Where step `step` (counted from 0) stands."""
        return clock_at(step, self.config, self.phases)

    def fit(
        self,
        *observers: Observer,
        measures: Sequence[Observer] = (),
        drawing: Sequence[Observer] = (),
        say: Callable[[str], None] = print,
    ) -> None:
        """Trains from the newest checkpoint, or from the beginning, to the last step, and keeps
        log, checkpoints and status in the folder.

        measures: what adds numbers to the log; it looks before that is written, the other observers
        behind everything. drawing: those that keep something of a step; a run that goes on shows
        them its first checkpoint again, for a kill may have come before they were done. Raises
        DivergedError, RefusedError (a checkpoint that does not fit), StoppedError behind a signal.
        """
        checkpoints = None
        if self.folder is not None:
            self.folder.clean()
            writes = self.world.is_leader
            checkpoints = Checkpoints(
                self.folder.checkpoints, self.config.keep, say, writes, self.config.keep_every
            )
        with threads_kept():
            self._fit(checkpoints, observers, measures, drawing, say)

    def _fit(
        self,
        checkpoints: Checkpoints | None,
        observers: Sequence[Observer],
        measures: Sequence[Observer],
        drawing: Sequence[Observer],
        say: Callable[[str], None],
    ) -> None:
        start = 0 if checkpoints is None else self.resume(checkpoints, say)
        if not start and (told := settle(self)):
            say(told)
        for doubt in doubts(self.config, self.phases):
            say(f"warning: {doubt}")
        if start:
            say(f"goes on behind step {start} of {self.config.steps}")
            again = Seen(self.clock(start - 1), {}, 0, self._exported)
            for look in drawing:
                look(again)
        if self.folder is not None:
            self.folder.threads = torch.get_num_threads()
            self.folder.write_status("running", start, self.config.steps)
        while True:
            records = self._records(start, checkpoints, say)
            try:
                self._run(start, (*measures, *records, *drawing, *observers), say)
                break
            except StoppedError:
                if self.folder is not None:
                    say("stopped, with a checkpoint: the same command goes on")
                raise
            except SpikeError as spike:
                assert checkpoints is not None
                start = self._go_back(checkpoints, str(spike), say)
        if self.folder is not None:
            self.folder.write_status("trained", self.config.steps, self.config.steps)

    def _run(self, start: int, looking: Sequence[Observer], say: Callable[[str], None]) -> None:
        with closing(self.steps(start, say)) as steps:
            for seen in steps:
                for look in looking:
                    look(seen)

    def _jumped(
        self, checkpoints: Checkpoints | None, say: Callable[[str], None], seen: Seen, said: str
    ) -> None:
        """Raises SpikeError where the run is to go back; else it says what jumped."""
        may = self.config.spikes == "roll_back" and self.roll_backs < ROLL_BACKS and not seen.stop
        if checkpoints is None or not may or self.world.on_leader(checkpoints.newest) is None:
            say(f"warning: {said}")
        else:
            raise SpikeError(said)

    def _go_back(self, checkpoints: Checkpoints, said: str, say: Callable[[str], None]) -> int:
        """The newest checkpoint again, and then batches that nobody has seen; returns its step."""
        drawn, again = self.batches, self.roll_backs + 1
        start = self.resume(checkpoints, say)
        self.batches, self.roll_backs = drawn, again
        say(
            f"warning: {said}; back to step {start}, and on with other batches "
            f"({again} of {ROLL_BACKS} times)"
        )
        return start

    def steps(self, start: int = 0, say: Callable[[str], None] | None = None) -> Generator[Seen]:
        """Trains one step at a time, from step `start` to the last, and shows each behind it.

        Between two steps nothing is held back: whoever leaves the loop ends the training. A signal
        ends it with StoppedError when the step was looked at. say: where it is told at once that a
        signal was noted.
        """
        clock = self.clock(start)

        def noted() -> None:
            assert say is not None
            now = f"stopping behind step {clock.step + 1} of {clock.steps}"
            say(f"{now}; a second signal ends the run at once")

        with Signals(self.config.stop_signals, noted=noted if say else None) as signals:
            for number in range(start, self.config.steps):
                clock = self.clock(number)
                numbers, losses = self._take(clock)
                # A signal that comes later belongs to the next step.
                stop = self.world.max(signals.number)
                seen = Seen(clock, numbers, stop, self._exported, losses)
                yield seen
                seen.release()
                if seen.stop and not seen.last:
                    raise StoppedError(seen.stop)

    def _take(self, clock: Clock) -> tuple[dict[str, Tensor | float], dict[str, Tensor]]:
        """One step: all updates of the method, what moves behind them, the averages. Its numbers
        and losses.
        """
        if clock.step and clock.phase_step == 0:
            self.state.restart()
        self.skips.begin(clock.step, self.batches)
        numbers: dict[str, Tensor | float] = {}
        losses = {}
        for index, update in enumerate(self.method.updates(clock)):
            number, self.batches = self.batches, self.batches + 1
            done = self.step(update, clock, index, number)
            self.skips.note(clock.step, done.bad)
            numbers |= done.numbers
            losses["+".join(update.trains)] = done.total
        numbers["skipped"] = self.skips.of(clock.step)
        self.method.after_step(self.nets, clock)
        self.state.average(clock.phase_step)
        return numbers, losses

    def _exported(self) -> dict[str, nn.Module]:
        return {name: self.state.exported(name) for name in self.state.roles.exports}

    def _records(
        self, start: int, checkpoints: Checkpoints | None, say: Callable[[str], None]
    ) -> list[Observer]:
        """What a run writes; without a folder it only counts skipped steps."""
        config, folder = self.config, self.folder
        saving = config.save_every if folder is not None else 0
        reading = Reading(config.log_every, saving)
        guard = Guard(self.skips, config.max_skips, reading, self._named, self.state.broken, folder)
        jumps = self.spikes.watch(reading, functools.partial(self._jumped, checkpoints, say))
        if folder is None or checkpoints is None:
            return [jumps, guard]
        records: list[Observer] = [jumps]
        if self.world.is_leader:
            records.append(RunLog(Log(folder.log, start, checkpoints.say), reading))
        best = config.keep_best
        save = SaveEvery(config.save_every, checkpoints, self.content, self.world, best)
        return [*records, guard, save, Status(folder, reading)]

    def _named(self, steps: Sequence[int]) -> dict[str, Any]:
        """The samples of these steps: what is needed to look into them."""
        rows, batches = range(self.config.batch), {}
        for step in steps:
            first = self.skips.number(step)
            samples: list[int] = []
            for number in range(first, first + len(self.method.updates(self.clock(step)))):
                samples += self.data.ids(number, rows).tolist()
            batches[str(step + 1)] = samples
        steps = [step + 1 for step in steps]
        return {"seed": self.config.seed, "steps": steps, "batches": batches}

    def content(self) -> CheckpointContent:
        """What a checkpoint holds of this moment; a collective call."""
        tensors = self.state.saved() | {"spikes": self.spikes.saved()}
        return CheckpointContent(tensors, self._facts())

    def _facts(self) -> dict[str, Any]:
        return _lasting(plain(self._identity())) | {
            "batches": self.batches,
            "skipped": self.skips.flags.nonzero()[:, 0].tolist(),
            "numbers": self.skips.numbers,
            "roll_backs": self.roll_backs,
            "setting": {
                "processes": self.world.size,
                "sharding": self.config.sharding,
                "micro_batch": self.step.micro if self.step.micro < self.step.share else 0,
                "threads": torch.get_num_threads(),
                "device": self.device.type,
                "torch": str(torch.__version__),
            },
        }

    def _identity(self) -> dict[str, Any]:
        """What must be the same when the run goes on."""
        mine = {"method": self.method, "trainer": self.config, "data": self.data.fingerprint}
        return mine | self.contents

    def check(self, facts: Mapping[str, Any]) -> None:
        """RefusedError where a checkpoint with these facts is of another run. An option that is
        missing there is younger than the checkpoint, and had its default.
        """
        mine = self._identity()
        old = _lasting(renewed(mine, facts))
        now = _lasting(renewed(mine, plain(mine)))  # as a file says it, which is what `old` is
        before = old["trainer"]["steps"]
        if before < self.config.steps:
            check_longer(self, before, facts["step"])
            old["trainer"] |= {"steps": self.config.steps}
        for key, value in now.items():
            if old[key] != value:
                raise RefusedError(
                    f"the checkpoint was made with another {key}: "
                    f"{difference(old[key], value)}; --restart begins at step 0"
                )

    def resume(self, checkpoints: Checkpoints, say: Callable[[str], None] = print) -> int:
        """Loads the newest checkpoint that is whole; returns its step, 0 where there is none.

        All processes read it. RefusedError where it is of another run.
        """
        step = self.world.on_leader(checkpoints.newest)
        if step is None:
            return 0
        tensors, facts = checkpoints.load(step)
        self.check(facts)
        setting = facts.get("setting", {})
        settle(self, setting.get("threads"))
        allowed = setting.get("micro_batch")  # by the memory that there was
        if self.config.micro_batch == 0 and allowed:
            self.step.micro = min(self.step.micro, allowed)
        mine = self._facts()["setting"]
        if changed := difference(mine | setting, mine):
            say(
                f"going on in another setting ({changed}): the same data and noise, not the same "
                f"bits"
            )
        self.state.load(tensors)
        self.batches = facts["batches"]
        self.roll_backs = facts.get("roll_backs", 0)
        self.spikes.load(tensors.get("spikes", {}))
        self.skips.numbers = list(facts["numbers"])
        self.skips.flags.zero_()
        self.skips.flags[facts["skipped"]] = True
        return step


def _lasting(facts: dict[str, Any]) -> dict[str, Any]:
    """Without the options that a run that goes on may have changed."""
    kept = {k: v for k, v in facts["trainer"].items() if k not in TrainerConfig.may_change}
    return facts | {"trainer": kept}
