"""Students at zero loss of methods that learn jumps: affine, as the teacher's steps are on Gaussian
data.
"""

import math

import torch
from tests.oracles import Gaussian

from fewstep.diffusion.process import (
    RectifiedFlow,
    Trig,
    VarianceExploding,
    VariancePreserving,
    VariancePreservingTable,
)
from fewstep.diffusion.types import per_sample

TABLE = VariancePreservingTable()
PROCESSES = {
    "ve": VarianceExploding(),
    "vp": VariancePreserving(),
    "table": TABLE,
    "flow": RectifiedFlow(),
    "trig": Trig(),
}


class Chain:
    """x0 answers that land, from any time of the grid, where the teacher's own first-order steps
    land, up or down.

    ends: a function of the time that names the landing; without it the student is told where.
    """

    def __init__(self, data: Gaussian, grid, ends=None):
        self.data, self.grid, self.ends = data, grid, ends
        zero = torch.zeros(1, dtype=torch.float64)
        self.down = torch.cat([zero, data.step_gain(grid[:-1], grid[1:]).log().cumsum(0)])
        self.up = torch.cat([zero, data.step_gain(grid[1:], grid[:-1]).log().cumsum(0)])

    def place(self, t):
        return (self.grid[None] - t[:, None]).abs().argmin(1)

    def gain(self, t, s):
        """What all steps from t to s multiply x - alpha·mean by."""
        i, j = self.place(t), self.place(s)
        return torch.where(i <= j, self.down[j] - self.down[i], self.up[i] - self.up[j]).exp()

    def landed(self, x_t, t, s):
        alpha_t, alpha_s = (per_sample(self.data.process.alpha(u), x_t) for u in (t, s))
        return alpha_s * self.data.mean + per_sample(self.gain(t, s), x_t) * (
            x_t - alpha_t * self.data.mean
        )

    def __call__(self, x_t, t, cond=None, s=None):
        end = s if self.ends is None else self.ends(t)
        return self.data.process.x0_between(x_t, self.landed(x_t, t, end), t, end)


def samples(rows, data, seed=1, size=1):
    """Rows of the data, float64."""
    noise = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)).double()
    return data.mean + data.std * noise


def descend(parameters, loss, steps, rate):
    """Adam with a cosine to 0 on loss(step); it forgets the size of gradients within the run."""
    optimizer = torch.optim.Adam(parameters, lr=rate, betas=(0.8, 0.9))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
