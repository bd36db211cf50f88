"""A method that somebody wrote outside of the package and that keeps every law, and how to break
it.
"""

GOOD = '''
from dataclasses import dataclass

import torch

from fewstep.choice import Share
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.samplers import Renoise
from fewstep.learning.averaging import ema_update
from fewstep.learning.method import Losses, Method
from fewstep.learning.roles import frozen, moved, trained
# imports


@dataclass(frozen=True)
class LabAnswers(Method):
    """The student learns the teacher's answers and those of its slow copy (ours, 2026)."""

    slow: Share = 0.5
    """What the slow copy keeps of itself in each step."""

    @dataclass
    class Nets:
        """The three."""

        student: Denoiser = trained(exported=True)
        target: Denoiser = moved()
        teacher: Denoiser = frozen()

    def build_nets(self, model, clone):
        return self.Nets(clone("student"), clone("target"), model.denoiser)

    def loss(self, nets, batch, clock):
        process = nets.teacher.process
        share = batch.draws.uniform()
        t = process.t_min + share * (process.t_max - process.t_min) * 0.9
        x_t = process.add_noise(batch.data, batch.noise(), t)
        with torch.no_grad():
            goal = nets.teacher(x_t, t, batch.cond) + nets.target(x_t, t, batch.cond)
        answer = nets.student(x_t, t, batch.cond)
        error = (answer - goal / 2 + batch.data / 50).square().flatten(1).mean(1)
        return Losses({"answer": error})

    def after_step(self, nets, clock):
        ema_update(nets.target, nets.student, self.slow)

    def sampler(self, clock, net="student"):
        return Renoise(steps=2)
'''


def broken(*changes: tuple[str, str]) -> str:
    """The good method with words replaced, each of which is in it once."""
    text = GOOD
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
        text = text.replace(old, new)
    return text
