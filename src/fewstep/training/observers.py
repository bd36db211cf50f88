"""What is written of a run while it goes on: each looks at every step and says itself when it is
due.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fewstep.errors import DivergedError
from fewstep.training.checkpoint import CheckpointContent, Checkpoints
from fewstep.training.log import Log
from fewstep.training.processes import World
from fewstep.training.run_folder import RunFolder
from fewstep.training.seen import Seen
from fewstep.training.skips import WINDOW, Skips


class Reading(NamedTuple):
    """When the device is waited for: every so many steps, before each checkpoint (0: there are
    none) and at the end.
    """

    every: int
    saving: int

    def __call__(self, seen: Seen) -> bool:
        before_save = self.saving > 0 and seen.done % self.saving == 0
        return seen.ends or seen.done % self.every == 0 or before_save


class RunLog:
    """Writes the numbers of every step into the log, in blocks."""

    def __init__(self, log: Log, reading: Reading):
        self.log, self.reading = log, reading

    def __call__(self, seen: Seen) -> None:
        self.log.add(seen.done, seen.numbers)
        if self.reading(seen):
            seen.lines = self.log.flush()


class Guard:
    """Ends a run of which too many steps were left out, or none was good, or of which something is
    not finite any more; before a checkpoint is written of that.

    named: what is needed to look into the steps that were left out; it goes into the folder.
    broken: what is not finite, in words, "" where all is; the same in all processes.
    """

    def __init__(
        self,
        skips: Skips,
        most: int,
        reading: Reading,
        named: Callable[[Sequence[int]], dict[str, Any]],
        broken: Callable[[], str],
        folder: RunFolder | None,
    ):
        self.skips, self.most, self.reading = skips, most, reading
        self.named, self.broken, self.folder = named, broken, folder

    def __call__(self, seen: Seen) -> None:
        """Raises DivergedError."""
        if not self.reading(seen):
            return
        steps = self.skips.steps(seen.clock.step)
        reason = self._reason(seen, len(steps)) or self.broken()
        if not reason:
            return
        if self.folder is not None:
            self.folder.write_diverged(self.named(steps))
            self.folder.write_status("diverged", seen.done, seen.clock.steps, reason)
        names = ", diverged.json names the batches" if steps else ""
        raise DivergedError(f"{reason}; a lower learning rate is the usual remedy{names}")

    def _reason(self, seen: Seen, bad: int) -> str:
        """Why steps that were left out end the run; "" where they do not."""
        if bad > self.most:
            return (
                f"{bad} of the last {WINDOW} steps had a non-finite loss or gradient "
                f"(max_skips={self.most})"
            )
        if seen.last and bad == min(seen.done, WINDOW):
            return f"none of the last {bad} steps had a finite loss and gradient"
        return ""


class SaveEvery:
    """Writes a checkpoint every so many steps and at the end; the leading process writes.

    content: what it holds; a collective call, for what is sharded is gathered. best: a number of
    the log, of which the checkpoint with the lowest value is kept; "" for none. Behind a step that
    was left out no other checkpoint is removed: the last good one may be among them.
    """

    def __init__(
        self,
        every: int,
        checkpoints: Checkpoints,
        content: Callable[[], CheckpointContent],
        world: World,
        best: str = "",
    ):
        self.every, self.checkpoints, self.content, self.world = every, checkpoints, content, world
        self.best = best

    def __call__(self, seen: Seen) -> None:
        if seen.ends or seen.due(self.every):
            content = self.content()
            if self.best:
                content.facts["score"] = self._score(seen)
            good = not float(seen.numbers["skipped"])
            self.world.on_leader(lambda: self.checkpoints.save(seen.done, content, good))

    def _score(self, seen: Seen) -> float | None:
        """The number that decides which is best; None where there is none."""
        if self.best not in seen.numbers:
            self.checkpoints.say(
                f"warning: step {seen.done} has no {self.best}, so its checkpoint is not compared "
                f"(trainer.keep_best)"
            )
            return None
        score = float(seen.numbers[self.best])
        return score if math.isfinite(score) else None


class Status:
    """Keeps status.json: how far the run is, and that it was stopped."""

    def __init__(self, folder: RunFolder, reading: Reading):
        self.folder, self.reading = folder, reading

    def __call__(self, seen: Seen) -> None:
        if seen.stop and not seen.last:
            reason = f"signal {seen.stop}"
            self.folder.write_status("stopped", seen.done, seen.clock.steps, reason)
        elif self.reading(seen):
            self.folder.write_status("running", seen.done, seen.clock.steps)
