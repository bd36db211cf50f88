"""Closed forms: data whose ideal denoiser and flow map are known exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.types import per_sample
from fewstep.learning.batch import Batch


@dataclass(frozen=True)
class Gaussian:
    """x0 ~ N(mean, std² I) under any process: spread² = alpha² std² + sigma², y = x_t - alpha
    mean.
    """

    process: object
    mean: float = 0.0
    std: float = 0.5

    def spread(self, t):
        return torch.hypot(self.process.alpha(t) * self.std, self.process.sigma(t))

    def __call__(self, x_t, t, cond=None, s=None):
        """E[x0 | x_t] = mean + alpha std²/spread² · y."""
        alpha = per_sample(self.process.alpha(t), x_t)
        gain = per_sample(self.process.alpha(t) * self.std**2 / self.spread(t) ** 2, x_t)
        return self.mean + gain * (x_t - alpha * self.mean)

    def flow(self, x_t, t, s):
        """The exact map of the probability flow: alpha_s mean + spread_s/spread_t · y."""
        alpha_t, alpha_s = (per_sample(self.process.alpha(u), x_t) for u in (t, s))
        return alpha_s * self.mean + per_sample(self.spread(s) / self.spread(t), x_t) * (
            x_t - alpha_t * self.mean
        )

    def jump(self, x_t, t, s):
        """The x0 with which one first-order step from t lands on `flow`, (flow - keep x)/move
        without its 0/0 at s = t: mean + gain·y, gain = std² (sigma_t alpha_s + sigma_s
        alpha_t)/(spread_t (spread_s sigma_t + sigma_s spread_t)).
        """
        p, spread_t, spread_s = self.process, self.spread(t), self.spread(s)
        top = self.std**2 * (p.sigma(t) * p.alpha(s) + p.sigma(s) * p.alpha(t))
        gain = top / (spread_t * (spread_s * p.sigma(t) + p.sigma(s) * spread_t))
        return self.mean + per_sample(gain, x_t) * (x_t - per_sample(p.alpha(t), x_t) * self.mean)

    def velocity(self, x_t, t):
        """alpha' mean + spread'/spread · y, spread·spread' = alpha alpha' std² + sigma sigma'."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        alpha_rate, sigma_rate = self.process.rates(t)
        rate = (alpha * alpha_rate * self.std**2 + sigma * sigma_rate) / self.spread(t) ** 2
        return per_sample(alpha_rate, x_t) * self.mean + per_sample(rate, x_t) * (
            x_t - per_sample(alpha, x_t) * self.mean
        )

    def step_gain(self, t, s):
        """What one first-order step does to y: (alpha_s alpha_t std² +
        sigma_s sigma_t)/spread_t².
        """
        p = self.process
        return (p.alpha(s) * p.alpha(t) * self.std**2 + p.sigma(s) * p.sigma(t)) / self.spread(
            t
        ) ** 2


@dataclass(frozen=True, eq=False)
class FiniteData:
    """x0 uniform on the rows of `points`: E[x0 | x_t] averages them by softmax(-‖x_t - alpha x‖²/2
    sigma²).
    """

    process: object
    points: torch.Tensor

    def __call__(self, x_t, t, cond=None, s=None):
        flat, points = x_t.flatten(1), self.points.flatten(1).to(x_t)
        alpha, sigma = (
            self.process.alpha(t)[:, None].to(x_t),
            self.process.sigma(t)[:, None].to(x_t),
        )
        distance = (flat[:, None] - alpha[..., None] * points).square().sum(2)
        weights = torch.softmax(-distance / (2 * sigma**2), dim=1)
        return (weights @ points).view_as(x_t)


def batch_of(x0, seed=0, cond=None):
    """A batch of these samples."""
    return Batch(cond or Cond(), Draws(seed, range(len(x0))), tuple(x0.shape[1:]), x0)
