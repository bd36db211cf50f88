"""How data becomes noise: x_t = alpha(t) x0 + sigma(t) noise, noise ~ N(0, I).

Time grows from data to noise in each process's own unit. Two processes describe the same
trajectories up to a rescaling; they meet where their angles atan2(sigma, alpha) agree (SNR
matching, docs/notation.md). All of this is computed in float64 and cast only when it touches a
sample.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from fewstep.choice import Choice, Positive, Rows, Spread
from fewstep.diffusion.types import Sample, Time, per_sample, to_device

# A level sigma/alpha above it is infinite: in float64 cos(pi/2) is 6e-17, not 0.
PURE_NOISE = 1e6

End = Literal["t_min", "t_data"]

# beartype, which checks shapes in tests, does not know `Self` here.
P = TypeVar("P", bound="Process")


class NoiseSchedule(NamedTuple):
    """alpha and sigma at some times, and their derivatives by the time."""

    alpha: Time
    sigma: Time
    alpha_rate: Time
    sigma_rate: Time


class Process(Choice, ABC):
    """alpha(t), sigma(t) and what follows from them.

    `t_data` is where sigma is 0 (a DDPM table: -1); networks work in [t_min, t_max]. `discrete`:
    the times are those of a table, whole numbers, and there are none beyond its ends.
    """

    t_data: ClassVar[float] = 0.0
    t_end: ClassVar[float] = math.inf
    """The last time at which the process is defined."""
    discrete: ClassVar[bool] = False
    t_min: float
    """The smallest time that networks see; just above the data."""
    t_max: float
    """The largest time: where sampling begins."""

    def __post_init__(self) -> None:
        """ValueError for a range that the process does not have: noise must grow all the way."""
        self._check_range(self.t_end)
        ends = torch.tensor([self.t_min, self.t_max], dtype=torch.float64, device="cpu")
        low, high = self.angle(ends).tolist()
        if not 0 < low < high < math.pi / 2 + 1e-9:
            raise ValueError(
                f"there must be more noise at t_max={self.t_max:g} than at t_min={self.t_min:g}, "
                f"and some there: atan2(sigma, alpha) is {high:g} and {low:g}"
            )

    def _check_range(self, last: float) -> None:
        """ValueError where t_min … t_max does not lie between the data and the last time."""
        if not self.t_min < self.t_max:
            raise ValueError(f"t_min={self.t_min:g} must be below t_max={self.t_max:g}")
        if not self.t_min > self.t_data:
            raise ValueError(f"t_min={self.t_min:g} must be above {self.t_data:g}: the data")
        if not self.t_max <= last:
            raise ValueError(f"t_max={self.t_max:g} is beyond {last:g}, the last time there is")

    def end(self, end: End) -> float:
        """The time of that name."""
        return self.t_data if end == "t_data" else self.t_min

    @abstractmethod
    def at(self, t: Time) -> NoiseSchedule:
        """alpha, sigma and their derivatives alpha', sigma' at t."""

    def alpha(self, t: Time) -> Time:
        """The share of data in x_t."""
        return self.at(t).alpha

    def sigma(self, t: Time) -> Time:
        """The standard deviation of noise in x_t."""
        return self.at(t).sigma

    def rates(self, t: Time) -> tuple[Time, Time]:
        """The derivatives alpha'(t) and sigma'(t)."""
        schedule = self.at(t)
        return schedule.alpha_rate, schedule.sigma_rate

    @abstractmethod
    def time_of(self, angle: Time) -> Time:
        """The time at which atan2(sigma, alpha) is `angle`, in [0, pi/2]."""

    def angle(self, t: Time) -> Time:
        """atan2(sigma, alpha): 0 for data, pi/2 for pure noise; how two processes meet."""
        return torch.atan2(self.sigma(t), self.alpha(t))

    def level(self, t: Time) -> Time:
        """sigma/alpha, the noise level: 0 for data, above `PURE_NOISE` where alpha is 0."""
        return torch.tan(self.angle(t))

    def at_level(self, level: Time) -> Time:
        """The time at which sigma/alpha is `level`; infinity is pure noise."""
        return self.time_of(torch.atan(level))

    def within(self: P, other: Process) -> P:
        """This process with its ends narrowed to the angles that `other` covers."""

        def here(t: float) -> float:
            return float(self.time_of(other.angle(torch.tensor([t], dtype=torch.float64))))

        low, high = max(self.t_min, here(other.t_min)), min(self.t_max, here(other.t_max))
        if not low < high:
            raise ValueError(
                f"{type(self).__name__} and {type(other).__name__} share no range of noise"
            )
        return dataclasses.replace(self, t_min=low, t_max=high)  # type: ignore[type-var]

    def add_noise(self, x0: Sample, noise: Sample, t: Time) -> Sample:
        """x_t of clean samples."""
        return per_sample(self.alpha(t), x0) * x0 + per_sample(self.sigma(t), x0) * noise

    def step(self, x_t: Sample, x0: Sample, t: Time, s: Time) -> Sample:
        """From t to s along the straight way that x0 implies: DDIM, Euler in sigma (EDM), Euler on
        the velocity (flow).

        x_s = (sigma_s/sigma_t) x_t + (alpha_s - alpha_t sigma_s/sigma_t) x0; needs sigma(t) > 0.
        """
        keep, move = self._step_coefficients(t, s)
        return per_sample(keep, x_t) * x_t + per_sample(move, x_t) * x0

    def x0_between(self, x_t: Sample, x_s: Sample, t: Time, s: Time) -> Sample:
        """The x0 that carries x_t to x_s in one `step`: its inverse (the target of progressive
        distillation).
        """
        keep, move = self._step_coefficients(t, s)
        return (x_s - per_sample(keep, x_t) * x_t) / per_sample(move, x_t)

    def prior(self, noise: Sample) -> Sample:
        """x at t_max made of unit noise alone; VP models start from unit noise, though a table ends
        at alpha 0.068.
        """
        return noise * self.sigma(torch.tensor([self.t_max], dtype=torch.float64)).item()

    def _step_coefficients(self, t: Time, s: Time) -> tuple[Time, Time]:
        keep = self.sigma(s) / self.sigma(t)
        return keep, self.alpha(s) - self.alpha(t) * keep


@dataclass(frozen=True)
class VarianceExploding(Process):
    """x_t = x0 + t noise (Karras et al. 2022, arXiv:2206.00364); the time is the noise level, at
    most 1e6, which counts as pure noise.
    """

    t_end: ClassVar[float] = PURE_NOISE
    t_min: Positive = 0.002
    t_max: Positive = 80.0

    def at(self, t: Time) -> NoiseSchedule:
        one = torch.ones_like(t)
        return NoiseSchedule(alpha=one, sigma=t, alpha_rate=torch.zeros_like(t), sigma_rate=one)

    def time_of(self, angle: Time) -> Time:
        return torch.tan(angle)


@dataclass(frozen=True)
class VariancePreserving(Process):
    """The continuous VP process with linear beta(t) on [0, 1] (Song et al. 2021, arXiv:2011.13456).

    alpha = exp(-t² (beta_max - beta_min)/4 - t beta_min/2), alpha² + sigma² = 1.
    """

    t_end: ClassVar[float] = 1.0
    beta_min: Positive = 0.1
    """beta at the data."""
    beta_max: Positive = 20.0
    """beta at t = 1."""
    t_min: Positive = 1e-3
    t_max: Positive = 1.0

    def at(self, t: Time) -> NoiseSchedule:
        slope = self.beta_max - self.beta_min
        log_alpha = -0.25 * t * t * slope - 0.5 * t * self.beta_min
        alpha = torch.exp(log_alpha)
        sigma = torch.sqrt(-torch.expm1(2 * log_alpha))
        rate = -0.5 * (t * slope + self.beta_min)
        return NoiseSchedule(alpha, sigma, rate * alpha, -rate * alpha * alpha / sigma)

    def time_of(self, angle: Time) -> Time:
        # log alpha = -c, solved for t >= 0 in the form that does not cancel at small c. And c, the
        # logarithm of 1/cos, is taken of 1 + tan²: near the data a cosine is 1 with all its digits.
        c = 0.5 * torch.log1p(torch.tan(angle) ** 2)
        slope = self.beta_max - self.beta_min
        return 4 * c / (self.beta_min + torch.sqrt(self.beta_min**2 + 4 * slope * c))

    def prior(self, noise: Sample) -> Sample:
        return noise


@dataclass(frozen=True)
class VariancePreservingTable(Process):
    """A DDPM's table of noise levels; the time is its index, and -1 is the data.

    `scaled_linear` with 0.00085 … 0.012 is Stable Diffusion's, `squaredcos_cap_v2` the cosine of
    arXiv:2102.09672, whose name is diffusers'. Between two indices the angle is linear in t.
    """

    t_data: ClassVar[float] = -1.0
    discrete: ClassVar[bool] = True

    size: Rows = 1000
    """Rows of the table."""
    beta_start: Positive = 0.00085
    """beta of the first row."""
    beta_end: Positive = 0.012
    """beta of the last row."""
    schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    """What is linear in the index: beta, or its square root (scaled_linear); or alpha is a cosine
    of it (squaredcos_cap_v2), which has neither beta_start nor beta_end."""
    zero_snr: bool = False
    """Moves the alphas so that the last row is pure noise (arXiv:2305.08891); the first stays."""
    t_min: float = 0.0
    t_max: float | None = None  # type: ignore[assignment]
    """The largest time: where sampling begins. none: the table's last index, size - 1."""

    def __post_init__(self) -> None:
        last = float(self.size - 1)
        if self.t_max is None:
            object.__setattr__(self, "t_max", last)
        self._check_range(last)
        if self.t_min < 0:
            raise ValueError(f"t_min={self.t_min:g} is below 0, the first row of the table")
        if not (self._angles.diff() >= 0).all():
            raise ValueError(
                f"beta_start={self.beta_start:g} … beta_end={self.beta_end:g} make no table: a "
                f"beta is at most 1"
            )

    @functools.cached_property
    def _angles(self) -> Tensor:
        """Angles at t = -1, 0, …, size - 1, float64 on the CPU."""
        log_alpha2 = torch.log1p(-self._betas()).cumsum(0)
        alpha, sigma = torch.exp(0.5 * log_alpha2), torch.sqrt(-torch.expm1(log_alpha2))
        if self.zero_snr:
            alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
            sigma = torch.sqrt(1 - alpha**2)
        angles = torch.atan2(sigma, alpha)
        return torch.cat([torch.zeros_like(angles[:1]), angles])

    def _betas(self) -> Tensor:
        """Of all rows, float64 on the CPU."""
        cpu = torch.device("cpu")
        if self.schedule == "squaredcos_cap_v2":
            place = torch.arange(self.size + 1, dtype=torch.float64, device=cpu) / self.size
            alpha2 = torch.cos((place + 0.008) / 1.008 * math.pi / 2) ** 2
            return (1 - alpha2[1:] / alpha2[:-1]).clamp(max=0.999)
        power = 2 if self.schedule == "scaled_linear" else 1
        first, last = self.beta_start ** (1 / power), self.beta_end ** (1 / power)
        return torch.linspace(first, last, self.size, dtype=torch.float64, device=cpu) ** power

    def at(self, t: Time) -> NoiseSchedule:
        table = to_device(self._angles, t.device, t.dtype)
        place = (t + 1).clamp(0, self.size)
        below = place.floor().clamp(max=self.size - 1).long()
        slope = table[below + 1] - table[below]
        angle = table[below] + (place - below) * slope
        alpha = torch.cos(angle)
        sigma = torch.sin(angle)
        return NoiseSchedule(alpha, sigma, -sigma * slope, alpha * slope)

    def time_of(self, angle: Time) -> Time:
        table = to_device(self._angles, angle.device, angle.dtype)
        above = torch.searchsorted(table, angle.contiguous()).clamp(1, self.size)
        share = (angle - table[above - 1]) / (table[above] - table[above - 1])
        return (above - 2 + share).clamp(-1, self.size - 1)

    def prior(self, noise: Sample) -> Sample:
        return noise


@dataclass(frozen=True)
class RectifiedFlow(Process):
    """x_t = (1 - t) x0 + t noise (Liu et al. 2022, arXiv:2209.03003), t in [0, 1]; velocity noise -
    x0.
    """

    t_end: ClassVar[float] = 1.0
    t_min: Positive = 1e-3
    t_max: Positive = 1.0

    def at(self, t: Time) -> NoiseSchedule:
        one = torch.ones_like(t)
        return NoiseSchedule(alpha=1 - t, sigma=t, alpha_rate=-one, sigma_rate=one)

    def time_of(self, angle: Time) -> Time:
        return torch.sin(angle) / (torch.sin(angle) + torch.cos(angle))


@dataclass(frozen=True)
class Trig(Process):
    """TrigFlow: x_t = cos(t) x0 + sin(t) sigma_data noise (Lu & Song 2024, arXiv:2410.11081), t in
    [0, pi/2].
    """

    t_end: ClassVar[float] = math.pi / 2

    sigma_data: Spread = 0.5
    """Standard deviation of the data."""
    t_min: Positive = 0.004
    t_max: Positive = math.pi / 2

    def at(self, t: Time) -> NoiseSchedule:
        cos = torch.cos(t)
        sin = torch.sin(t)
        return NoiseSchedule(cos, self.sigma_data * sin, -sin, self.sigma_data * cos)

    def time_of(self, angle: Time) -> Time:
        return torch.atan2(torch.sin(angle), self.sigma_data * torch.cos(angle))
