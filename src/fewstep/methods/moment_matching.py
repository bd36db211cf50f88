"""Inductive moment matching (Zhou et al. 2025, arXiv:2503.07565)."""

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Any

import torch

from fewstep.choice import Count, NonNegative, Positive
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.densities import TOP, goes_to_noise
from fewstep.diffusion.process import Process, VarianceExploding
from fewstep.diffusion.samplers import FlowMap, Sampler
from fewstep.diffusion.times import Times, Uniform
from fewstep.diffusion.types import Time
from fewstep.learning.batch import Batch
from fewstep.learning.discrepancy import discrepancy, partners
from fewstep.learning.dropout import SharedDropout
from fewstep.learning.guidance import GuidanceRange, GuidedBy
from fewstep.learning.method import Clock, Clone, Losses, Method
from fewstep.learning.roles import trained
from fewstep.learning.tangent import rectified
from fewstep.learning.weights import SIGMA_DATA, data_share, sigma_data_of


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
    sigma_data: Positive | None = None
    """Standard deviation of the data; null: as the teacher states it, else 0.5."""
    k: NonNegative = 12.0
    """r lies 160/2^k in sigma/(sigma_data alpha) below t, or at s: the same in every process."""
    a: NonNegative = 1.0
    """Power of alpha in the weight over time."""
    b: float = 5.0
    """Bias of the sigmoid in the weight over time."""
    guidance: GuidanceRange | None = None
    """1 or null: the method asks no teacher that could be guided. 1 also where the teacher samples
    with guidance, which its student then does not learn."""
    sample_times: Times = dataclasses.field(default_factory=lambda: Uniform("t_min"))
    """Times of the few-step sampler that the student is saved with."""

    @property
    def guided_by(self) -> GuidedBy:
        return "nothing"

    @dataclass
    class Nets:
        """The student alone."""

        student: Denoiser = trained(exported=True)

    def build_nets(self, model: Any, clone: Clone) -> Nets:
        columns = ", ".join(model.conditioner.columns)
        if self.samples <= model.classes or (columns and not model.classes):
            told = f"{model.classes} labels" if model.classes else columns
            warnings.warn(
                f"moment matching: in groups of samples={self.samples} rows with {told} most meet "
                f"no other row of their condition and learn the mean; samples should be several "
                f"times the number of conditions",
                stacklevel=2,
            )
        return self.Nets(clone("student", inputs={"s"}))

    def group(self) -> int:
        return self.samples

    def times(self, student: Denoiser, batch: Batch) -> tuple[Time, Time, Time]:
        """(t, r, s), the same for all rows of a group."""
        process, sigma_data = student.process, self.sigma_data or sigma_data_of(student)
        low, high = ends(process, sigma_data)
        draws = batch.draws.grouped(self.samples)
        first, second = draws.uniform(), draws.uniform()
        late = low + (high - low) * first
        begins = torch.zeros_like(late, dtype=torch.bool)
        if goes_to_noise(process):  # what lies above the last level is t_max itself
            top = TOP / (sigma_data + TOP)
            begins, late = late >= top, late.clamp(max=top)
        early = low + (late - low) * second
        clean, noisy = ends(VarianceExploding(), SIGMA_DATA)
        step = (noisy / (1 - noisy) - clean / (1 - clean)) / 2**self.k
        down = torch.maximum(late / (1 - late) - step, early / (1 - early))
        levels = late / (1 - late), down, early / (1 - early)
        t, r, s = (process.at_level(level * sigma_data) for level in levels)
        return torch.where(begins, process.t_max, t), r, s

    def loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """One triple of times per group, one noise per sample."""
        student, process = nets.student, nets.student.process
        t, r, s = self.times(student, batch)
        noise = batch.noise()
        x_t, x_r = (process.add_noise(batch.data, noise, u) for u in (t, r))
        masks = SharedDropout(x_t.device)
        with masks:
            y_t = process.step(x_t, student(x_t, t, batch.cond, s), t, s)
        with torch.no_grad(), masks:
            y_r = process.step(x_r, student(x_r, r, batch.cond, s), r, s)
        keep = process.sigma(s) / process.sigma(t)
        width = ((process.alpha(s) - process.alpha(t) * keep) * student.coefficients(t).out).abs()
        distance = discrepancy(y_t, y_r, width, *partners(batch, self.samples))
        return Losses(
            {"matching": self.weight(student, t).to(distance) * distance}, {"distance": distance}
        )

    def weight(self, student: Denoiser, t: Time) -> Time:
        """w(t), with -dλ/dt = 2/(t (1 - t)) of rectified flow."""
        share, noise = data_share(student.process, t), student.process.sigma(t)
        sigma = noise / ((self.sigma_data or sigma_data_of(student)) * share + noise)
        alpha = 1 - sigma
        rate = torch.sigmoid(self.b - 2 * torch.log(alpha / sigma)) / (alpha * sigma)
        return rate * alpha**self.a / (alpha**2 + sigma**2)

    def sampler(self, clock: Clock, net: str = "student") -> Sampler:
        return FlowMap(steps=2, times=self.sample_times)


def ends(process: Process, sigma_data: float) -> tuple[float, float]:
    """Where the process begins and ends, in the time of rectified flow."""
    times = torch.tensor([process.t_min, process.t_max], dtype=torch.float64)
    low, high = rectified(process, times, sigma_data).tolist()
    return low, high
