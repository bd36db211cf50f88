"""Densities: the distributions from which training draws its times, in float64."""

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from fewstep.choice import Choice, Count, Logarithm, Positive, Share
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.process import Process, VarianceExploding
from fewstep.diffusion.times import Auto, Times
from fewstep.diffusion.types import Time, time_dtype, to_device

# Levels sigma/alpha. From TOP up, where EDM begins, a sample counts as noise; a process that goes
# beyond FAR goes on to pure noise.
TOP, FAR = 80.0, 200.0


def goes_to_noise(process: Process) -> bool:
    """Whether sampling begins at pure noise, or so close to it that no density comes there."""
    return bool(process.level(torch.tensor([process.t_max], dtype=torch.float64)) > FAR)


def _known(process: Process, t: Time) -> Time:
    """Times as they are, but for a table, beyond whose ends there is nothing, and for a process
    that goes on to pure noise: all levels from `TOP` up are t_max, where sampling begins.
    """
    if process.discrete:
        t = t.clamp(process.t_min, process.t_max)
    if goes_to_noise(process):
        t = torch.where(process.level(t) >= TOP, process.t_max, t)
    return t


class Density(Choice, ABC):
    """The distribution of training times."""

    @abstractmethod
    def __call__(self, process: Process, draws: Draws) -> Time:
        """One time per row of the draws, on their device."""


@dataclass(frozen=True)
class LogNormal(Density):
    """ln(sigma/alpha) ~ N(mean, std²); EDM's (-1.2, 1.2). Not truncated, except to a table's ends;
    levels from 80 up are t_max in a process that goes on to pure noise.
    """

    mean: Logarithm = -1.2
    """Mean of ln(sigma/alpha)."""
    std: Positive = 1.2
    """Standard deviation of ln(sigma/alpha)."""

    def __call__(self, process: Process, draws: Draws) -> Time:
        level = torch.exp(self.mean + self.std * draws.normal().to(time_dtype(draws.device)))
        return _known(process, process.at_level(level))


@dataclass(frozen=True)
class LogStudent(Density):
    """ln(sigma/alpha) follows Student's t with `df` degrees of freedom, times std, plus mean; cut
    off below the level `low` and above t_max (arXiv:2410.14895), or above 1000.

    With ln(sigma/alpha) = mean + std √df sinh(y) the density of y is cosh(y)^-df, nearly even for a
    small df: so its integral, by trapezia on 1,025 points, is inverted on straight lines.
    """

    df: Positive = 0.01
    """Degrees of freedom; the smaller, the heavier the tails."""
    mean: Logarithm = 0.0
    """Location of ln(sigma/alpha)."""
    std: Positive = 0.2
    """Scale of ln(sigma/alpha)."""
    low: Positive = 1.0
    """The level sigma/alpha below which nothing is drawn."""

    def __call__(self, process: Process, draws: Draws) -> Time:
        top = process.level(torch.tensor([process.t_max], dtype=torch.float64)).clamp(max=1e3)
        if not self.low < top:
            raise ValueError(
                f"low={self.low:g} is not below the largest sigma/alpha, {top.item():g}"
            )
        scale = self.std * math.sqrt(self.df)
        first, last = (
            math.asinh((math.log(level) - self.mean) / scale) for level in (self.low, top.item())
        )
        y = torch.linspace(first, last, 1025, dtype=torch.float64)
        below = torch.cumulative_trapezoid(torch.cosh(y) ** -self.df, y)
        below = torch.cat([torch.zeros(1, dtype=torch.float64), below / below[-1]])
        y, below = (to_device(v, draws.device, time_dtype(draws.device)) for v in (y, below))
        u = draws.uniform()
        above = torch.searchsorted(below, u).clamp(1, len(y) - 1)
        share = (u - below[above - 1]) / (below[above] - below[above - 1])
        level = torch.exp(
            self.mean + scale * torch.sinh(y[above - 1] + share * (y[above] - y[above - 1]))
        )
        return _known(process, process.at_level(level))


@dataclass(frozen=True)
class LogitNormal(Density):
    """sigma/(alpha + sigma), the time of rectified flow, is sigmoid(N(mean, std²))
    (arXiv:2403.03206).
    """

    mean: Logarithm = 0.0
    """Mean of the logit of the time of rectified flow."""
    std: Positive = 1.0
    """Standard deviation of that logit."""

    def __call__(self, process: Process, draws: Draws) -> Time:
        u = torch.sigmoid(self.mean + self.std * draws.normal().to(time_dtype(draws.device)))
        return _known(process, process.time_of(torch.atan2(u, 1 - u)))


@dataclass(frozen=True)
class Along(Density):
    """Even on the `points` times of a grid, but for the shares below `low` and above `high` of its
    cleaner end.

    Along(low=0.02, high=0.98) is the choice of distribution matching (arXiv:2405.14867), there of a
    Karras grid.
    """

    times: Times = dataclasses.field(default_factory=lambda: Auto(end="t_min"))
    """The grid whose times are drawn."""
    points: Count = 1000
    """Times of the grid."""
    low: Share = 0.0
    """Share of the times at the cleaner end that are left out, 0 … 1."""
    high: Share = 1.0
    """Share, counted from the cleaner end, from which times are left out, 0 … 1."""

    def __post_init__(self) -> None:
        if not int(self.low * self.points) <= min(int(self.high * self.points), self.points - 1):
            raise ValueError(f"no time lies between low={self.low:g} and high={self.high:g}")

    def __call__(self, process: Process, draws: Draws) -> Time:
        rising = self.times(process, self.points - 1).flip(0)
        rising = to_device(rising, draws.device, time_dtype(draws.device))
        first = int(self.low * self.points)
        last = min(int(self.high * self.points), self.points - 1)
        return rising[first + draws.integers(last - first + 1)]


@dataclass(frozen=True)
class UniformTime(Density):
    """Uniform in t on [t_min, t_max]; on whole numbers for a table with whole=True."""

    whole: bool = False
    """Whole numbers only, for a table."""

    def __call__(self, process: Process, draws: Draws) -> Time:
        if self.whole:
            low, high = round(process.t_min), round(process.t_max)
            return (low + draws.integers(high - low + 1)).to(time_dtype(draws.device))
        return process.t_min + (process.t_max - process.t_min) * draws.uniform()


@dataclass(frozen=True)
class Usual(Density):
    """What a denoiser of the process is trained with: EDM's log-normal levels for EDM
    (variance_exploding), else even times, whole ones of a table (arXiv:2006.11239,
    arXiv:2011.13456, arXiv:2209.03003).

    Where time ends at pure noise, or at a table's last index, a log-normal density hardly comes to
    where sampling begins; even times do.
    """

    def __call__(self, process: Process, draws: Draws) -> Time:
        if isinstance(process, VarianceExploding):
            return LogNormal()(process, draws)
        return UniformTime(whole=process.discrete)(process, draws)
