"""Distribution matching: the matching loss, the fake denoiser, and data known in closed form."""

import math

import pytest
import torch
from tests.diffusion.cases import close
from tests.methods.matching import CLOCK, MATCHING, VE, batch, functions, leaf_of
from tests.oracles import Gaussian
from tests.stand_ins import Exact, Output, Seen, denoising
from tests.training.tiny import model, real
from torch import nn

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.densities import Along
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.parameterization import (
    Edm,
    SamplePrediction,
)
from fewstep.diffusion.process import VariancePreserving, VariancePreservingTable
from fewstep.diffusion.times import Karras
from fewstep.learning.batch import Batch
from fewstep.learning.guidance import GuidanceRange
from fewstep.methods.dmd2 import DMD2

# The matching loss


def matched(leaf, fake, teacher, method=None, **options):
    """The mean matching loss of samples that are a leaf of the graph; their gradient stands in
    leaf.grad.
    """
    nets = functions(lambda x, t: leaf * 1, fake, teacher)
    losses = (method or DMD2(**MATCHING)).loss(nets, batch(len(leaf), tuple(leaf.shape[1:])), CLOCK)
    assert list(losses.terms) == ["matching"]
    losses.terms["matching"].mean().backward()
    return losses.terms["matching"].detach()


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_networks_that_agree_move_nothing(dropout):
    """Bit by bit, in single precision and through real networks: at the start fake is the teacher
    (invariant 1), whatever the dropout of its training.
    """
    one = real(DMD2(**MATCHING), of=model(dropout=dropout))
    assert one.nets.fake.training
    losses = one.nets, one.data(0, range(8), Draws(0, range(8))), CLOCK
    losses = one.method.loss(*losses)
    assert torch.equal(losses.terms["matching"], torch.zeros(8))
    losses.terms["matching"].sum().backward()
    assert all(not p.grad.any() for p in one.nets.student.parameters())


def test_the_gradient_in_the_samples_is_the_difference_of_the_two_looks():
    """g = (x^_fake - x^_real)/mean|x - x^_real| per sample, over the number of all elements
    (invariant 2).
    """
    leaf = leaf_of()
    teacher, fake = Seen(lambda x, t: torch.tanh(x)), Seen(lambda x, t: 0.3 * x + 0.1)
    loss = matched(leaf, fake, teacher)
    ((x_t, t),) = teacher.asked
    assert torch.equal(fake.asked[0][0], x_t)
    assert torch.equal(fake.asked[0][1], t)
    x = leaf.detach()
    g = (0.3 * x_t + 0.1 - torch.tanh(x_t)) / (x - torch.tanh(x_t)).abs().mean(1, keepdim=True)
    close(leaf.grad, g / g.numel(), rtol=1e-9, atol=1e-12)
    close(loss, 0.5 * g.square().mean(1), rtol=1e-9)


def test_in_single_precision_the_gradient_is_kept_to_its_sixth_digit():
    leaf = leaf_of(dtype=torch.float32)
    teacher = Seen(lambda x, t: torch.tanh(x))
    matched(leaf, lambda x, t: 0.3 * x + 0.1, teacher)
    x_t, x = teacher.asked[0][0].double(), leaf.detach().double()
    g = (0.3 * x_t + 0.1 - torch.tanh(x_t)) / (x - torch.tanh(x_t)).abs().mean(1, keepdim=True)
    assert (
        leaf.grad - g / g.numel()
    ).abs().max() < 1e-6 * g.abs().max() / g.numel() + 1e-7 / g.numel()


def test_the_gradient_does_not_depend_on_the_scale_of_the_looks():
    """x - x^_real and x - x^_fake grown by c together: the same g (invariant 3)."""
    seen = []
    for c in (1e-3, 1, 1e3):
        leaf = leaf_of()
        x = leaf.detach()
        matched(
            leaf,
            lambda _, t, c=c, x=x: x - c * torch.cos(3 * x),
            lambda _, t, c=c, x=x: x - c * torch.sin(x),
        )
        seen.append(leaf.grad)
    assert seen[0].abs().max() > 1e-3
    close(seen[1], seen[0], rtol=1e-8, atol=1e-12)
    close(seen[2], seen[0], rtol=1e-8, atol=1e-12)


def test_a_sample_that_the_teacher_leaves_alone_gives_no_nan():
    leaf = leaf_of()
    x = leaf.detach()
    loss = matched(leaf, lambda _, t: x, lambda _, t: x)
    assert torch.equal(loss, torch.zeros_like(loss))
    assert torch.equal(leaf.grad, torch.zeros_like(x))
    loss = matched(leaf, lambda _, t: 0.9 * x, lambda _, t: x)
    assert loss.isfinite().all()
    assert leaf.grad.isfinite().all()


def test_only_the_teacher_is_guided_and_the_normaliser_sees_it_guided():
    """x^_real = null + g (cond - null), in the loss and in mean|x - x^_real|; fake answers at scale
    1.
    """
    leaf = leaf_of()

    class Told(nn.Module):
        inputs = ("label",)

        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x, t, cond, s=None):
            return self.factor * cond["label"][:, None].to(x) * torch.ones_like(x)

    labels = torch.arange(1, 17)
    cond = Cond({"label": labels}, {"label": torch.full((16,), 100)})
    fake, teacher = (Denoiser(Told(factor), VE, SamplePrediction()) for factor in (0.5, 0.25))
    nets = DMD2.Nets(Exact(VE, lambda x, t: leaf * 1), fake, nn.Identity(), teacher)
    told = Batch(cond, Draws(0, range(16)), (4,))
    DMD2(**MATCHING, guidance=GuidanceRange(3.0, 3.0)).loss(nets, told, CLOCK).terms[
        "matching"
    ].mean().backward()
    label = labels.double()[:, None].expand(16, 4)
    guided = 25 + 3 * (0.25 * label - 25)
    g = (0.5 * label - guided) / (leaf.detach() - guided).abs().mean(1, keepdim=True)
    close(leaf.grad, g / g.numel(), rtol=1e-9, atol=1e-12)


def test_the_student_says_at_which_guidance_it_was_distilled():
    assert DMD2().student_guidance() == Guidance()
    assert DMD2(guidance=GuidanceRange(3.0, 3.0)).student_guidance() == Guidance(
        "fixed", 3.0, 3.0, 3.0
    )


def test_guidance_by_a_teacher_without_an_unconditional_side_is_refused():
    with pytest.raises(ValueError, match="guidance"):
        real(DMD2(guidance=GuidanceRange(5.0, 5.0)))


# The Gaussian toy: data N(m, s²), samples a z + b, and everything known in closed form


class Toy:
    """DMD2 on samples a z + b whose denoiser is kept exact; 16 pixels, so that the normaliser's
    mean is finite.
    """

    def __init__(self, a, b, process=VE, mean=0.3, std=0.5, **options):
        self.a, self.b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (a, b))
        self.process, self.method = process, DMD2(**MATCHING, **options)
        data = Gaussian(process, mean, std)
        scale = float(process.prior(torch.ones(1, 1)))
        self.nets = functions(
            lambda x, t: self.a * x / scale + self.b,
            lambda x, t: Gaussian(process, float(self.b), abs(float(self.a)))(x, t),
            data,
            process,
        )

    def loss(self, rows=64, seed=0):
        return self.method.loss(self.nets, batch(rows, (16,), seed), CLOCK).terms["matching"].mean()

    def gradient(self, rows):
        return torch.stack(torch.autograd.grad(self.loss(rows), (self.a, self.b)))


@pytest.mark.parametrize(
    "process", [VE, VariancePreserving(), VariancePreservingTable()], ids=lambda p: type(p).__name__
)
def test_the_toys_gradient_vanishes_at_the_data_and_nowhere_else(process):
    for a in (0.5, -0.5):
        assert Toy(a, 0.3, process).gradient(64).abs().max() < 1e-12
    away = {
        "mean": Toy(0.5, 0.4, process).gradient(4096),
        "spread": Toy(0.6, 0.3, process).gradient(4096),
        "other sign": Toy(-0.6, 0.3, process).gradient(4096),
        "narrow": Toy(0.4, 0.3, process).gradient(4096),
        "both": Toy(0.4, 0.1, process).gradient(4096),
    }
    # Each parameter is pushed towards its own value; a right mean alone does not fix the spread.
    assert away["mean"][1] > 0.01
    assert away["spread"][0] > 0.01
    assert away["other sign"][0] < -0.01
    assert away["narrow"][0] < -0.01
    assert away["both"].max() < -0.01
    assert abs(away["spread"][1]) < 0.2 * away["spread"][0]


def test_descent_on_the_toy_reaches_the_data():
    """Not noisily: at the data each sample's gradient is 0, so Adam ends there to many digits."""
    toy = Toy(1.0, -0.4)
    optimizer = torch.optim.Adam((toy.a, toy.b), lr=0.04)
    for step in range(250):
        for group in optimizer.param_groups:
            group["lr"] = 0.04 * 0.5 * (1 + math.cos(math.pi * step / 250))
        optimizer.zero_grad()
        toy.loss(rows=32, seed=step).backward()
        optimizer.step()
    assert toy.a.item() == pytest.approx(0.5, abs=1e-5)
    assert toy.b.item() == pytest.approx(0.3, abs=1e-5)


# The fake denoiser


def test_a_silent_fake_has_loss_one_on_samples_of_its_own_spread():
    """EDM's weight, at every noise level: what the student makes is denoised as data is in teacher
    training.
    """
    student = denoising(VE, lambda x, t: 0.5 * x / 80)
    fake = Denoiser(Output(lambda x, t: torch.zeros_like(x)), VE, Edm(0.5))
    nets = DMD2.Nets(student, fake, nn.Identity(), fake)
    losses = DMD2(**MATCHING).fake_loss(nets, batch(20_000, (8,)), CLOCK)
    assert list(losses.terms) == ["fake"]
    assert losses.terms["fake"].mean().item() == pytest.approx(1.0, abs=0.01)


def test_the_exact_denoiser_of_the_students_samples_is_stationary():
    """Samples N(0.1, 0.8²): the gradient in a scale of their ideal denoiser vanishes, and not for
    the data's.
    """
    gradients = {}
    for std, start in ((0.8, 1.0), (0.8, 1.05), (0.5, 1.0)):
        scale = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        ideal = Gaussian(VE, 0.1, std)
        fake = Denoiser(Output(lambda x, t, a=scale, f=ideal: a * f(x, t)), VE, SamplePrediction())
        nets = DMD2.Nets(denoising(VE, lambda x, t: 0.8 * x / 80 + 0.1), fake, nn.Identity(), fake)
        loss = DMD2(**MATCHING).fake_loss(nets, batch(50_000, (4,)), CLOCK).terms["fake"].mean()
        (gradients[std, start],) = torch.autograd.grad(loss, scale)
    assert abs(gradients[0.8, 1.0]) < 0.05 * abs(gradients[0.8, 1.05])
    assert abs(gradients[0.8, 1.0]) < 0.05 * abs(gradients[0.5, 1.0])


def test_the_times_of_the_two_losses():
    """Denoising at all 1000 levels of the grid, matching at those from index 20 to 980 of the clean
    end.
    """
    rising = Karras(end="t_min")(VE, 999).flip(0)
    fake, teacher = Seen(lambda x, t: 0.5 * x), Seen(lambda x, t: 0.4 * x)
    nets = functions(lambda x, t: x / 80, fake, teacher)
    method = DMD2(**MATCHING)
    for seed in range(4):
        method.fake_loss(nets, batch(4000, (1,), seed), CLOCK)
    places = torch.searchsorted(rising, torch.cat([t for _, t in fake.asked]) * (1 - 1e-9))
    assert (places.min(), places.max(), len(places.unique())) == (0, 999, 1000)
    for seed in range(4):
        method.loss(nets, batch(4000, (1,), seed), CLOCK)
    places = torch.searchsorted(rising, torch.cat([t for _, t in teacher.asked]) * (1 - 1e-9))
    assert (places.min(), places.max(), len(places.unique())) == (20, 980, 961)


class Counting(Draws):
    """Draws whose integers count up from 0."""

    def integers(self, high, *shape):
        self.high = high
        return torch.arange(high)


@pytest.mark.parametrize(
    ("density", "first", "last"),
    [
        (Along(), 0, 999),
        (Along(low=0.02, high=0.98), 20, 980),
        (Along(low=0.5), 500, 999),
        (Along(points=40, low=0.02, high=0.98), 0, 39),  # floor(0.8) and min(floor(39.2), 39)
        (Along(points=2), 0, 1),
    ],
)
def test_the_published_ranges(density, first, last):
    """Both ends belong to it; index i of EDM's grid counts from the clean end."""
    draws = Counting(0, range(8))
    t = density(VE, draws)
    assert draws.high == last - first + 1 == len(t)
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    share = torch.arange(first, last + 1, dtype=torch.float64) / (density.points - 1)
    close(t, (low + share * (high - low)) ** 7, rtol=1e-9)


def test_the_published_range_in_numbers():
    t = Along(low=0.02, high=0.98)(VE, Counting(0, range(8)))
    assert (round(t[0].item(), 5), round(t[-1].item(), 2)) == (0.00323, 72.05)


@pytest.mark.parametrize(("low", "high"), [(0.9, 0.1), (1.0, 1.0)])
def test_an_empty_range_is_refused(low, high):
    with pytest.raises(ValueError, match="low"):
        Along(low=low, high=high)
