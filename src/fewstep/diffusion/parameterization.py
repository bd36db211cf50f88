"""What a network predicts: x0 = skip·x_t + out·F(inp·x_t, t).

Every prediction type of the field is affine in the network's output, so three coefficients per time
cover them all. This file is the only place that knows prediction types. `1/out²` is also the weight
that turns a squared error in x0 into a squared error of the network's own output (EDM's lambda, SNR
for epsilon, SNR + 1 for v, …).
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from fewstep.choice import Choice, Spread, kind_of
from fewstep.diffusion.process import End, Process
from fewstep.diffusion.types import Time


class Coefficients(NamedTuple):
    """x0 = skip·x_t + out·F(inp·x_t, t)."""

    skip: Time
    out: Time
    inp: Time


class Parameterization(Choice, ABC):
    """The coefficients of one prediction type, for any process."""

    @classmethod
    def spelled(cls, value: Any) -> Any:
        """As of every choice; "sample" alone is `sample_prediction`."""
        return super().spelled("sample_prediction" if value == "sample" else value)

    @abstractmethod
    def __call__(self, process: Process, t: Time) -> Coefficients:
        """Coefficients at times t of the process, in the dtype of t."""

    def seen_from(self, process: Process, t: Time, own: Process, own_t: Time) -> Coefficients:
        """Those on x_t of `process` for a network that speaks `own`, where own_t is the same noise
        level.
        """
        c = self(own, own_t)
        scale = _carried(process, t, own, own_t)
        return Coefficients(c.skip * scale, c.out, c.inp * scale)

    def boundary(self, end: End = "t_min") -> Parameterization:
        """The consistency function made of this prediction: the identity at t_min, or at the
        data.
        """
        return ConsistencyBoundary(self, end)

    @property
    def prediction(self) -> Parameterization:
        """What the network itself predicts, without a boundary around it."""
        return self


class Boundary(Parameterization, ABC):
    """A consistency function already: the identity at t_min of the process that x_t belongs to,
    whichever the network speaks.

    What the network predicts is read in its own process; the boundary is made around that x0.
    """

    def __call__(self, process: Process, t: Time) -> Coefficients:
        return self.seen_from(process, t, process, t)

    def boundary(self, end: End = "t_min") -> Parameterization:
        """Itself, unless it is to end at the data."""
        return self if end == "t_min" else ConsistencyBoundary(self.prediction, end)


def _carried(process: Process, t: Time, own: Process, own_t: Time) -> Time:
    """By what x_t of `process` is multiplied to be one of `own`."""
    there = torch.hypot(own.alpha(own_t), own.sigma(own_t))
    return there / torch.hypot(process.alpha(t), process.sigma(t))


def _identity_at(end: float, t: Time, c: Coefficients) -> Coefficients:
    """Exactly 1 and 0 at the end: an elementary function need not give the same last bit in every
    place of a tensor.
    """
    at_end = t == end
    return Coefficients(c.skip.masked_fill(at_end, 1.0), c.out.masked_fill(at_end, 0.0), c.inp)


@dataclass(frozen=True)
class Epsilon(Parameterization):
    """F is the noise: x0 = (x_t - sigma F)/alpha (Ho et al. 2020, arXiv:2006.11239). Undefined at
    alpha = 0.
    """

    def __call__(self, process: Process, t: Time) -> Coefficients:
        alpha, sigma = process.alpha(t), process.sigma(t)
        return Coefficients(1 / alpha, -sigma / alpha, torch.ones_like(alpha))


@dataclass(frozen=True)
class Velocity(Parameterization):
    """F is v = (alpha noise - sigma x0)/rho, rho² = alpha² + sigma² (Salimans & Ho 2022,
    arXiv:2202.00512).
    """

    def __call__(self, process: Process, t: Time) -> Coefficients:
        alpha, sigma = process.alpha(t), process.sigma(t)
        rho = torch.hypot(alpha, sigma)
        return Coefficients(alpha / rho**2, -sigma / rho, 1 / rho)


@dataclass(frozen=True)
class Flow(Parameterization):
    """F is dx_t/dt = alpha' x0 + sigma' noise; noise - x0 for rectified flow (Lipman et al. 2022,
    arXiv:2210.02747).
    """

    def __call__(self, process: Process, t: Time) -> Coefficients:
        alpha, sigma = process.alpha(t), process.sigma(t)
        alpha_rate, sigma_rate = process.rates(t)
        delta = alpha * sigma_rate - alpha_rate * sigma
        return Coefficients(sigma_rate / delta, -sigma / delta, torch.ones_like(alpha))


@dataclass(frozen=True)
class SamplePrediction(Parameterization):
    """F is x0 itself."""

    def __call__(self, process: Process, t: Time) -> Coefficients:
        one = torch.ones_like(process.alpha(t))
        return Coefficients(torch.zeros_like(one), one, one)


@dataclass(frozen=True)
class Score(Parameterization):
    """F is the score, the gradient of log p_t: x0 = (x_t + sigma² F)/alpha (Song et al. 2021,
    arXiv:2011.13456). Undefined at alpha = 0.
    """

    def __call__(self, process: Process, t: Time) -> Coefficients:
        alpha, sigma = process.alpha(t), process.sigma(t)
        return Coefficients(1 / alpha, sigma**2 / alpha, torch.ones_like(alpha))


PREDICTIONS: dict[str, Parameterization] = {
    "epsilon": Epsilon(),
    "v_prediction": Velocity(),
    "sample": SamplePrediction(),
}
"""As diffusers' schedulers call them."""


def predicted(scheduler: Mapping[str, Any]) -> Parameterization:
    """What the networks of a scheduler's configuration (diffusers') predict. ValueError for what is
    not known.
    """
    kind = scheduler.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        raise ValueError(f"no network is known that predicts {str(kind)[:40]!r}")
    return PREDICTIONS[kind]


def predicting(prediction: Parameterization) -> dict[str, str]:
    """What a scheduler's configuration (diffusers') says of networks that predict this. ValueError
    for what it has no word for.
    """
    for kind, known in PREDICTIONS.items():
        if prediction == known:
            return {"prediction_type": kind}
    name = kind_of(type(prediction))
    raise ValueError(f"schedulers know {', '.join(PREDICTIONS)}, this network predicts {name}")


@dataclass(frozen=True)
class Edm(Parameterization):
    """EDM's preconditioning (Karras et al. 2022, arXiv:2206.00364, table 1), written for any
    process.

    With q² = sigma_data² alpha² + sigma²: skip = sigma_data² alpha/q², out = sigma sigma_data/q,
    inp = 1/q. At alpha = 1 it is the published one; TrigFlow's is the same map with F of opposite
    sign.
    """

    sigma_data: Spread = 0.5
    """Standard deviation of the data."""

    def __call__(self, process: Process, t: Time) -> Coefficients:
        alpha, sigma = process.alpha(t), process.sigma(t)
        q = torch.hypot(self.sigma_data * alpha, sigma)
        skip = self.sigma_data * self.sigma_data * alpha / q**2
        return Coefficients(skip, sigma * self.sigma_data / q, 1 / q)

    def boundary(self, end: End = "t_min") -> Parameterization:
        """To t_min the published boundary of EDM networks, which diffusers' consistency pipeline
        assumes.
        """
        return CmBoundary(self.sigma_data) if end == "t_min" else ConsistencyBoundary(self, end)


@dataclass(frozen=True)
class ConsistencyBoundary(Boundary):
    """Any prediction, then `Process.step` to t_min: the identity at t_min, for every process and
    without sigma_data. To the data it is the prediction itself, and the identity there.

    With c = sigma_min/sigma_t and o = alpha_min - alpha_t c: skip' = c + o·skip, out' = o·out.
    """

    of: Parameterization = dataclasses.field(default_factory=Edm)
    """The prediction behind it."""
    end: End = "t_min"
    """Where it is the identity: at t_min, or at the data."""

    @property
    def prediction(self) -> Parameterization:
        return self.of.prediction

    def seen_from(self, process: Process, t: Time, own: Process, own_t: Time) -> Coefficients:
        inner = self.of.seen_from(process, t, own, own_t)
        end = torch.full_like(t, process.end(self.end))
        c = process.sigma(end) / process.sigma(t)
        o = process.alpha(end) - process.alpha(t) * c
        return _identity_at(
            process.end(self.end), t, Coefficients(c + o * inner.skip, o * inner.out, inner.inp)
        )


@dataclass(frozen=True)
class CmBoundary(Boundary):
    """The boundary published with consistency models (Song et al. 2023, arXiv:2303.01469, appendix
    C).

    In VE units u = sigma/alpha: skip = sigma_data²/((u - u_min)² + sigma_data²),
    out = (u - u_min) sigma_data/√(u² + sigma_data²): the root keeps the unshifted u. F depends on u
    alone, so the process that the network speaks does not matter.
    """

    sigma_data: Spread = 0.5
    """Standard deviation of the data."""

    @property
    def prediction(self) -> Parameterization:
        return Edm(self.sigma_data)

    def seen_from(self, process: Process, t: Time, own: Process, own_t: Time) -> Coefficients:
        alpha, sigma = process.alpha(t), process.sigma(t)
        end = torch.full_like(t, process.t_min)
        # The jump ends at t_min, where a sample is alpha times that of VE units.
        keep = process.alpha(end)
        # alpha (u - u_min): nothing is divided by alpha, which may be 0.
        above = sigma - alpha * process.sigma(end) / keep
        data = self.sigma_data * alpha
        q = torch.hypot(data, sigma)
        skip = self.sigma_data * data / (above**2 + data**2)
        out = above * self.sigma_data / q
        return _identity_at(process.t_min, t, Coefficients(keep * skip, keep * out, 1 / q))


@dataclass(frozen=True)
class LcmBoundary(Boundary):
    """The boundary of released latent consistency models and of diffusers' LCMScheduler
    (arXiv:2310.04378), whose t_min is index 0.

    With tau = 10 (t - t_min) in table units: skip = c + o·skip_of, out = o·out_of, where c =
    0.25/(tau² + 0.25) and o = tau/√(tau² + 0.25). All of it on x_t of the network's own process;
    the end is carried over to the process that asks.
    """

    of: Parameterization = dataclasses.field(default_factory=Epsilon)
    """The prediction behind it."""

    @property
    def prediction(self) -> Parameterization:
        return self.of.prediction

    def seen_from(self, process: Process, t: Time, own: Process, own_t: Time) -> Coefficients:
        inner = self.of.seen_from(process, t, own, own_t)
        end = torch.full_like(t, process.t_min)
        own_end = own.time_of(process.angle(end)) if own != process else end
        tau = 10 * (own_t - own_end)
        c, o = 0.25 / (tau**2 + 0.25), tau / torch.sqrt(tau**2 + 0.25)
        at_end = _carried(process, end, own, own_end)
        c, o = c * _carried(process, t, own, own_t) / at_end, o / at_end
        return _identity_at(
            process.t_min, t, Coefficients(c + o * inner.skip, o * inner.out, inner.inp)
        )
