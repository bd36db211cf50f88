"""The derivative of a student along a trajectory, which methods in continuous time learn from."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.choice import Choice, Positive
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.densities import Density
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.process import Process
from fewstep.diffusion.types import Sample, Time, per_sample, time_dtype
from fewstep.learning.dropout import SharedDropout
from fewstep.learning.method import Clock
from fewstep.learning.weights import data_share
from fewstep.models.adapters import View, in_full_precision
from fewstep.models.network import ConditionedModule


class Point(NamedTuple):
    """Where a student is asked, (x_t, t, s), or how fast that moves."""

    x: Sample
    t: Time
    s: Time | None = None

    def wide(self) -> "Point":
        """The same in float64, where the device has it."""
        kind = time_dtype(self.x.device)
        s = None if self.s is None else self.s.to(kind)
        return Point(self.x.to(kind), self.t.to(kind), s)


class Tangent(Choice, ABC):
    """(x0, dx0/dτ) of a denoiser at a point that moves; neither carries a gradient.

    The network runs in the type of its weights (in float32 on a shared base of fewer digits),
    without autocast and eagerly: the derivative is a difference of large numbers, and compiled or
    fused kernels know no forward derivative. Around it everything is float64.
    """

    def __call__(
        self, denoiser: Denoiser, at: Point, rate: Point, cond: Cond
    ) -> tuple[Sample, Sample]:
        """rate: dx_t/dτ, dt/dτ and ds/dτ (None: s rests)."""
        bare = Denoiser(denoiser.network, denoiser.process, denoiser.parameterization, denoiser.own)
        at, rate = at.wide(), rate.wide()
        if at.s is not None and rate.s is None:
            rate = rate._replace(s=torch.zeros_like(at.s))
        with torch.no_grad(), in_full_precision(bare):
            return self.measure(bare, at, rate, cond)

    @abstractmethod
    def measure(
        self, denoiser: Denoiser, at: Point, rate: Point, cond: Cond
    ) -> tuple[Sample, Sample]:
        """The same for a bare denoiser, float64 numbers, and a rate of s wherever there is an s."""


@dataclass(frozen=True)
class Forward(Tangent):
    """Forward-mode differentiation: exact, one pass with two numbers in the place of each.

    It also works where FSDP2 has split the weights: without a gradient they are gathered as they
    are for any pass.
    """

    def measure(
        self, denoiser: Denoiser, at: Point, rate: Point, cond: Cond
    ) -> tuple[Sample, Sample]:
        with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), _contiguous(denoiser):
            x, t, s = (None if a is None else forward_ad.make_dual(a, r) for a, r in zip(at, rate))
            x0, change = forward_ad.unpack_dual(denoiser(x, t, cond, s))
            return x0, torch.zeros_like(x0) if change is None else change


@contextlib.contextmanager
def _contiguous(module: nn.Module) -> Iterator[None]:
    """Within the block its GroupNorms are given tangents that lie as their numbers do: where a
    reshaped tangent is strided otherwise, PyTorch's forward derivative of group_norm fails.
    """

    def relaid(norm: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        number, tangent = forward_ad.unpack_dual(inputs[0])
        if tangent is None:
            return inputs
        return (forward_ad.make_dual(number.contiguous(), tangent.contiguous()),)

    norms = [part for part in module.modules() if isinstance(part, nn.GroupNorm)]
    handles = [norm.register_forward_pre_hook(relaid) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Difference(Tangent):
    """(x0(τ + h) - x0(τ - h))/2h, one-sided where a time would leave its range: for networks with
    operations that know no forward derivative. Two more passes, under the same dropout masks.

    Each row's h moves the angle atan(sigma/alpha) by `step` at most, and the number that the
    network embeds for a time (`number`; 250 ln sigma for networks without one) by 250 step: its
    fastest sinusoid has the frequency 1. In fp32 the rounding of the output is divided by h, so
    that a smaller one is not a better one.
    """

    step: Positive = 3e-4
    """The largest change of the angle atan(sigma/alpha) between two passes, in radians."""

    def measure(
        self, denoiser: Denoiser, at: Point, rate: Point, cond: Cond
    ) -> tuple[Sample, Sample]:
        low, high = denoiser.process.t_min, denoiser.process.t_max
        moving = [
            (time, speed)
            for time, speed in ((at.t, rate.t), (at.s, rate.s))
            if time is not None and speed is not None
        ]
        pace = torch.stack([self.pace(denoiser, time, speed) for time, speed in moving]).amax(0)
        ahead = behind = self.step / torch.where(pace > 0, pace, 1.0)
        for time, speed in moving:
            still = speed == 0
            before, beyond = (low - time) / speed, (high - time) / speed
            to_come, gone = torch.maximum(before, beyond), -torch.minimum(before, beyond)
            ahead = torch.minimum(ahead, torch.where(still, ahead, to_come).clamp(min=0))
            behind = torch.minimum(behind, torch.where(still, behind, gone).clamp(min=0))
        masks, found = SharedDropout(at.x.device), []
        for shift in (torch.zeros_like(ahead), ahead, -behind):
            s = None if at.s is None or rate.s is None else at.s + shift * rate.s
            with masks:
                found.append(
                    denoiser(
                        at.x + per_sample(shift, at.x) * rate.x, at.t + shift * rate.t, cond, s
                    )
                )
        x0, after, before = found
        return x0, (after - before) / per_sample(ahead + behind, x0)

    def pace(self, denoiser: Denoiser, time: Time, speed: Time) -> Time:
        """How fast a time moves: in its angle or, if that is faster, in 250ths of the network's own
        number for it.
        """
        process, network = denoiser.own, denoiser.network
        if isinstance(network, View):
            network = network.inside
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(time, speed)
            angle = denoiser.process.angle(dual)
            own = dual if process == denoiser.process else process.time_of(angle)
            if isinstance(network, ConditionedModule):
                level = network.number(own) / 250
            else:
                level = torch.log(process.sigma(own))
            rates = [forward_ad.unpack_dual(value).tangent for value in (angle, level)]
        return torch.stack(
            [torch.zeros_like(time) if one is None else one.abs() for one in rates]
        ).amax(0)


def rectified(process: Process, t: Time, sigma_data: float = 1.0) -> Time:
    """The time at which rectified flow has this noise level: sigma/(sigma_data alpha + sigma), 0 …
    1.

    sigma_data: the standard deviation of the data, for methods that scale it to 1.
    """
    return process.sigma(t) / (sigma_data * process.alpha(t) + process.sigma(t))


def per_log_ratio(process: Process, t: Time) -> Time:
    """dt/d ln(sigma/alpha); sin t cos t for TrigFlow, t for VE. At pure noise it is not 0, but as
    fast as at sigma/alpha = 80 (`data_share`).
    """
    alpha, sigma, alpha_rate, sigma_rate = process.at(t)
    return data_share(process, t) * sigma / (alpha * sigma_rate - alpha_rate * sigma)


def per_rectified(process: Process, t: Time) -> Time:
    """dt/dτ for the time τ of rectified flow; 1 for rectified flow itself, (1 + t)² for VE."""
    alpha, sigma, alpha_rate, sigma_rate = process.at(t)
    return (alpha + sigma) ** 2 / (alpha * sigma_rate - alpha_rate * sigma)


def trajectory_rate(process: Process, x_t: Sample, x0: Sample, t: Time, unit: Time) -> Point:
    """How x_t and t move on the trajectory whose clean sample is x0, while τ grows by 1; unit:
    dt/dτ.

    dx_t/dt = (sigma'/sigma) x_t + (alpha' - alpha sigma'/sigma) x0: the probability flow for the
    teacher's x0, for the sample itself the straight line through x_t and its noise. Float64, since
    both terms grow as 1/sigma.
    """
    alpha, sigma, alpha_rate, sigma_rate = process.at(t)
    x_t, x0 = x_t.to(time_dtype(x_t.device)), x0.to(time_dtype(x_t.device))
    pull = unit * (alpha_rate - alpha * sigma_rate / sigma)
    return Point(
        per_sample(unit * sigma_rate / sigma, x_t) * x_t + per_sample(pull, x_t) * x0, unit
    )


def jump_and_rate(
    tangent: Tangent, student: Denoiser, at: Point, rate: Point, cond: Cond
) -> tuple[Sample, Sample, Sample]:
    """The student's x0 with its gradient; x0 and dx0/dτ without, in float64, under the same dropout
    masks.
    """
    masks = SharedDropout(at.x.device)
    with masks:
        jump = student(at.x, at.t, cond, at.s)
    with masks:
        return jump, *tangent(student, at, rate, cond)


def flow_error(
    tangent: Tangent, student: Denoiser, at: Point, x0: Sample, cond: Cond, share: float = 1.0
) -> tuple[Sample, Sample]:
    """(the student's x0 with its gradient, df/dτ without) for its map f from t to s, seen in
    rectified-flow time.

    There f = x - (t - s) u with the average velocity u = (x - G)/t, where G is the student's x0:
    `Process.step` with G. df/dτ = v - u - (t - s) du/dτ = [(G - x0) (1 - share (1 - s/t)) + share
    (t - s) dG/dτ]/t on the trajectory of x0. It is 0 where f is the same from all its points; share
    < 1 leaves out a part of the second term (warm-up).
    """
    process, s = student.process, at.t if at.s is None else at.s
    jump, seen, change = jump_and_rate(
        tangent,
        student,
        at,
        trajectory_rate(process, at.x, x0, at.t, per_rectified(process, at.t)),
        cond,
    )
    late, early = rectified(process, at.t), rectified(process, s)
    direct, bend = 1 - share * (1 - early / late), share * (late - early)
    error = per_sample(direct / late, seen) * (seen - x0) + per_sample(bend / late, seen) * change
    return jump, error


def normalised(x: Sample, floor: float) -> Sample:
    """x/(‖x‖ + floor), the norm over the whole sample (arXiv:2410.11081)."""
    norm = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return x / per_sample(norm + floor, x)


def regressed(jump: Sample, error: Sample, scale: Time) -> Sample:
    """(jump - goal)/scale with the goal jump - scale·error, of which only the first jump carries a
    gradient.

    Its value is the error itself, free of what rounding and lower precision do to the difference of
    two large samples.
    """
    return (jump - jump.detach()) / per_sample(scale, jump) + error.to(jump)


def warmed(clock: Clock, share: float) -> float:
    """The weight of the derivative's unstable part: it rises linearly to 1 over this share of the
    run.
    """
    return min(1.0, (clock.step + 1) / (share * clock.steps)) if share else 1.0


def ordered(
    process: Process, draws: Draws, late: Density, early: Density, equal: float
) -> tuple[Time, Time]:
    """(t, s) with t >= s, both within [t_min, t_max]: t of one density, s of the other but never
    above t.

    equal: the share of rows that have s = t, beside those whose s would have been above.
    """
    t = late(process, draws).clamp(process.t_min, process.t_max)
    s = torch.minimum(early(process, draws).clamp(min=process.t_min), t)
    return t, torch.where(draws.uniform() < equal, t, s)
