"""Pictures of what a run has learned so far."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fewstep.errors import NotFiniteError
from fewstep.images.grid import write_grid
from fewstep.learning.method import Method
from fewstep.training.processes import World
from fewstep.training.seen import Seen

IMAGES = 40


class Gallery:
    """Grids of the averaged networks, of the same seeds each time: samples/step-00000100-2.png for
    2 steps.

    model: whose codec, conditions and shape they have. steps: one grid for each that the student
    serves, or, if it serves none of them, one in its own number. say: where it tells of a grid that
    is not drawn, for the samples are not finite; the run goes on.
    """

    def __init__(
        self,
        method: Method,
        model: Any,
        folder: Path,
        every: int,
        steps: Sequence[int],
        world: World,
        say: Callable[[str], None] = print,
    ):
        self.method, self.model, self.folder, self.every = method, model, folder, every
        self.steps, self.world, self.say = steps, world, say

    def __call__(self, seen: Seen) -> None:
        """Draws and writes, in the leading process; the others help to gather the networks."""
        if not seen.due(self.every):
            return
        for name, net in seen.exported.items():
            sampler = self.method.sampler(seen.clock, name)
            if sampler is None or not self.world.is_leader:
                continue
            guidance = self.method.student_guidance(self.model.guidance)
            made = self.model.with_student(net, sampler, guidance, {}, {})
            prefix = "" if name == "student" else f"{name}-"
            served = filter(self.method.serves, self.steps)
            for steps in list(served) or [sampler.steps]:
                path = self.folder / f"{prefix}step-{seen.done:08d}-{steps}.png"
                try:
                    write_grid(path, made.generate(num=IMAGES, steps=steps))
                except NotFiniteError as error:
                    self.say(f"warning: no grid {path.name}: {error}")
