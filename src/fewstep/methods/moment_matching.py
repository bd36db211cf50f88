"""Inductive moment matching (Zhou et al. 2025, arXiv:2503.07565)."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.choice import Count, NonNegative, Positive
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.process import Process
from fewstep.diffusion.samplers import FlowMap, Sampler
from fewstep.diffusion.times import Times, Uniform
from fewstep.diffusion.types import Sample, Time, to_device
from fewstep.learning.batch import Batch
from fewstep.learning.dropout import SharedDropout
from fewstep.learning.method import Clock, Clone, Losses, Method
from fewstep.learning.roles import trained
from fewstep.learning.tangent import rectified


@dataclass(frozen=True)
class MomentMatching(Method):
    """w(t) MMD²( f(x_t, t, s), sg f(x_r, r, s) ) over groups of `samples` rows with common times t
    > r >= s.

    f is one `Process.step` with the student's x0; x_r has the sample and noise of x_t. The kernel
    is exp(-‖a - b‖/(d |c|)), c what f multiplies the network's output by; two rows meet only where
    their conditions are equal, so that samples and conditions are matched jointly. The MMD is the
    V-statistic, split by rows: the mean over a group of its rows' losses is the group's. Where few
    rows of a group share a condition the statistic is mostly each row's own pair, which pulls to
    the mean: take several times the labels.

    Times are uniform in that of rectified flow for data scaled by sigma_data, and with its λ =
    ln(α²/σ²) the weight is w = ½ sigmoid(b - λ) (-dλ/dt) α^a/(α² + σ²). The authors' training code
    is not public: a, b and k are as reported of the paper, w and the treatment of conditions are
    ours.
    """

    samples: Count = 4
    """Rows of a group, whose times are common and whose samples are compared."""
    sigma_data: Positive = 0.5
    """Standard deviation of the data."""
    k: NonNegative = 12.0
    """r lies the 2^-k-th part of the range of sigma/alpha below t, or at s."""
    a: NonNegative = 1.0
    """Power of alpha in the weight over time."""
    b: float = 5.0
    """Bias of the sigmoid in the weight over time."""
    sample_times: Times = dataclasses.field(default_factory=lambda: Uniform("t_min"))
    """Times of the few-step sampler that the student is saved with."""

    @dataclass
    class Nets:
        """The student alone."""

        student: Denoiser = trained(exported=True)

    def build_nets(self, model: Any, clone: Clone) -> Nets:
        return self.Nets(clone("student", inputs={"s"}))

    def group(self) -> int:
        return self.samples

    def at(self, process: Process, level: Time) -> Time:
        """The time of a level."""
        return process.at_level(level * self.sigma_data)

    def times(self, process: Process, batch: Batch) -> tuple[Time, Time, Time]:
        """(t, r, s), the same for all rows of a group."""
        ends = torch.tensor([process.t_min, process.t_max], dtype=torch.float64)
        low, high = rectified(process, ends, self.sigma_data).tolist()
        high = min(high, 1 - 1e-3)  # beyond it sigma/alpha has no finite range
        draws = batch.draws.grouped(self.samples)
        first, second = draws.uniform(), draws.uniform()
        late = low + (high - low) * first
        early = low + (late - low) * second
        step = (high / (1 - high) - low / (1 - low)) / 2**self.k
        down = torch.maximum(late / (1 - late) - step, early / (1 - early))
        top, bottom = late / (1 - late), early / (1 - early)
        return self.at(process, top), self.at(process, down), self.at(process, bottom)

    def loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """One triple of times per group, one noise per sample."""
        student, process = nets.student, nets.student.process
        t, r, s = self.times(process, batch)
        noise = batch.noise()
        x_t, x_r = (process.add_noise(batch.data, noise, u) for u in (t, r))
        masks = SharedDropout(x_t.device)
        with masks:
            y_t = process.step(x_t, student(x_t, t, batch.cond, s), t, s)
        with torch.no_grad(), masks:
            y_r = process.step(x_r, student(x_r, r, batch.cond, s), r, s)
        keep = process.sigma(s) / process.sigma(t)
        width = ((process.alpha(s) - process.alpha(t) * keep) * student.coefficients(t).out).abs()
        distance = self.discrepancy(y_t, y_r, width, *self.partners(batch))
        return Losses(
            {"matching": self.weight(process, t).to(distance) * distance}, {"distance": distance}
        )

    def weight(self, process: Process, t: Time) -> Time:
        """w(t), with -dλ/dt = 2/(t (1 - t)) of rectified flow."""
        sigma = rectified(process, t, self.sigma_data)
        alpha = 1 - sigma
        rate = torch.sigmoid(self.b - 2 * torch.log(alpha / sigma)) / (alpha * sigma)
        return rate * alpha**self.a / (alpha**2 + sigma**2)

    def partners(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(places, shares), both (batch, samples): where the rows of each row's group stand, and
        what each counts.

        A row that is not here (outside of training a group may be cut) counts nothing; one with
        another condition is no partner, but it counts in the mean.
        """
        place = {row: i for i, row in enumerate(batch.draws.rows)}
        members = []
        for row in place:
            first = row // self.samples * self.samples
            members.append([place.get(other, -1) for other in range(first, first + self.samples)])
        table = torch.tensor(members)
        places, here = (to_device(v, batch.data.device) for v in (table.clamp(min=0), table >= 0))
        shares = here / here.sum(1, keepdim=True)
        for value in batch.cond.values.values():
            rows = value.reshape(len(value), 1, -1)
            shares = shares * (rows == rows[places, 0]).all(2)
        return places, shares

    def discrepancy(
        self, y_t: Sample, y_r: Sample, width: Time, places: Tensor, shares: Tensor
    ) -> Tensor:
        """Each row's part of the V-statistic, (batch,): k(t, t') + k(r, r') - 2 k(t, r'), mean."""
        late, early = y_t.flatten(1), y_r.flatten(1)
        scale = (width * late.shape[1]).clamp(min=1e-12).to(late)[:, None]

        def kernel(a: Tensor, b: Tensor) -> Tensor:
            return torch.exp(-torch.linalg.vector_norm(a[:, None] - b[places], dim=2) / scale)

        # Half of each k(t, r') belongs to the one row, half to the other.
        inside = kernel(late, late) + kernel(early, early)
        parts = inside - kernel(late, early) - kernel(early, late)
        return (parts * shares.to(late)).sum(1)

    def sampler(self, clock: Clock, net: str = "student") -> Sampler:
        return FlowMap(steps=2, times=self.sample_times)
