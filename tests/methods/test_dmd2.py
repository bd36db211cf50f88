"""Distribution matching against closed forms and the laws of its specification (section 4.6)."""

import math

import pytest
import torch
import torch.nn.functional as F
from tests.diffusion.cases import PROCESSES, close, every, f64, narrowed
from tests.oracles import Exact, Gaussian, Output, denoising
from tests.training.tiny import SHAPE, assert_same, config, data, model, part, real, state
from torch import nn

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.densities import Along
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.parameterization import (
    CmBoundary,
    ConsistencyBoundary,
    Edm,
    SamplePrediction,
)
from fewstep.diffusion.process import VarianceExploding, VariancePreserving, VariancePreservingTable
from fewstep.diffusion.samplers import Renoise
from fewstep.diffusion.times import Karras
from fewstep.learning.batch import Batch
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.method import Clock
from fewstep.methods.dmd2 import DMD2
from fewstep.models.adapters import FullCopy
from fewstep.models.heads import Head
from fewstep.training.trainer import Trainer

VE = VarianceExploding()
CLOCK = Clock(0, 100, 64)
MATCHING = {"gan": 0.0, "gan_fake": 0.0}
THREE = every("process", {"ve": VE, "vp": VariancePreserving(), "table": VariancePreservingTable()})


def batch(rows=16, shape=(4,), seed=0, x0=None):
    return Batch(Cond(), Draws(seed, range(rows)), shape, x0)


class Seen:
    """A function in the place of a denoiser that remembers what it was asked."""

    def __init__(self, function):
        self.function, self.asked = function, []

    def __call__(self, x, t):
        self.asked.append((x.detach().clone(), t.clone()))
        return self.function(x, t)


def functions(student, fake, teacher, process=VE):
    """Networks of the method that are any functions of (x_t, t)."""
    return DMD2.Nets(
        Exact(process, student),
        denoising(process, fake),
        nn.Identity(),
        denoising(process, teacher),
    )


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


def leaf_of(rows=16, pixels=4, dtype=torch.float64):
    return torch.randn(
        rows, pixels, generator=torch.Generator().manual_seed(4), dtype=dtype
    ).requires_grad_()


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


# Adversarial terms


class Looker(nn.Module):
    """A network whose one tap is its input, as a map of one channel."""

    inputs = ()

    def __init__(self):
        super().__init__()
        self.tap, self.taps = nn.Identity(), {"tap": 1}

    def forward(self, x, t, cond, s=None):
        return 0.5 * self.tap(x)


class Judge(nn.Module):
    """Logits k·mean(features) + bias; remembers them."""

    def __init__(self, k=0.0, bias=0.0):
        super().__init__()
        self.k, self.bias, self.seen = (
            nn.Parameter(torch.tensor(k)),
            nn.Parameter(torch.tensor(bias)),
            [],
        )

    def forward(self, features):
        self.seen.append(features.detach())
        return self.k * features.flatten(1).mean(1) + self.bias


def adversaries(judge, student=lambda x, t: x / 80):
    fake = Denoiser(Looker(), VE, SamplePrediction())
    return DMD2.Nets(denoising(VE, student), fake, judge, denoising(VE, lambda x, t: 0.4 * x))


def test_an_undecided_discriminator_costs_ln_2_a_look():
    """L_G = gan ln 2, L_D = gan_fake 2 ln 2 (invariant 7)."""
    method = DMD2(gan=0.3, gan_fake=0.7)
    made = batch(16, (4,), x0=torch.randn(16, 4))
    nets = adversaries(Judge())
    close(
        method.fake_loss(nets, made, CLOCK).terms["discriminator"],
        torch.full((16,), 0.7 * 2 * math.log(2)),
    )
    made = batch(16, (4,), x0=torch.randn(16, 4))
    close(
        method.loss(nets, made, CLOCK).terms["adversarial"],
        torch.full((16,), 0.3 * math.log(2)),
        rtol=1e-6,
    )


def test_the_adversarial_terms_by_value():
    """softplus(D(made)) + softplus(-D(real)) for fake and head, softplus(-D(made)) for the student,
    on noised images.

    The two looks of a row are at one time of all 1000, and each has its own noise.
    """
    method, judge = DMD2(gan=0.3, gan_fake=0.7), Judge(0.6, -0.2)
    nets = adversaries(judge, student=lambda x, t: torch.full_like(x, -0.75))
    x0 = torch.full((4000, 16), 0.75)
    losses = method.fake_loss(nets, batch(4000, (16,), x0=x0), CLOCK)
    real_seen, made_seen = judge.seen
    logits = [0.6 * seen.mean(1) - 0.2 for seen in (real_seen, made_seen)]
    close(
        losses.terms["discriminator"],
        0.7 * (F.softplus(logits[1]) + F.softplus(-logits[0])),
        rtol=1e-5,
    )
    ratio = (
        (real_seen - 0.75).std(1) / (made_seen + 0.75).std(1)
    ).log()  # of one time: 16 pixels each
    assert ratio.abs().max() < 2.5
    assert (
        abs(torch.corrcoef(torch.stack([(real_seen - 0.75)[:, 0], (made_seen + 0.75)[:, 0]]))[0, 1])
        < 0.1
    )
    assert (real_seen - 0.75).std(1).min() < 0.003
    assert (real_seen - 0.75).std(1).max() > 60
    judge.seen.clear()
    losses = method.loss(nets, batch(4000, (16,), x0=x0), CLOCK)
    (made_seen,) = judge.seen
    close(
        losses.terms["adversarial"], 0.3 * F.softplus(-(0.6 * made_seen.mean(1) - 0.2)), rtol=1e-5
    )


class Witness(Looker):
    """A network that remembers the times and labels that it was asked with."""

    inputs = ("label",)

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, x, t, cond, s=None):
        self.asked.append((t, cond["label"]))
        return super().forward(x, t, cond, s)


def test_when_and_with_which_condition_the_networks_are_asked():
    """Each with the labels of the batch, also in backward simulation; the fake's and all
    adversarial looks are at its own density, of which one time is left here.
    """
    method = DMD2(steps=3, density=Along(low=0.5, high=0.5), fake_density=Along(low=0.9, high=0.9))
    nets = DMD2.Nets(
        *(Denoiser(Witness(), VE, SamplePrediction()) for _ in range(2)),
        Judge(),
        Denoiser(Witness(), VE, SamplePrediction()),
    )
    labels = torch.arange(1, 17)
    cond = Cond({"label": labels}, {"label": 0 * labels})
    seed = next(seed for seed in range(20) if Draws(seed, range(1)).choice(3) == 2)
    rising = Karras(end="t_min")(VE, 999).flip(0)
    simulated = Karras(rho=20.0, end="t_min")(VE, 3)[:3].tolist()
    matching, adversarial = rising[500].item(), rising[900].item()
    for update, fake, teacher in (
        (method.fake_loss, [adversarial] * 3, []),
        (method.loss, [matching, adversarial], [matching]),
    ):
        for net in (nets.student, nets.fake, nets.teacher):
            net.network.asked.clear()
        update(nets, Batch(cond, Draws(seed, range(16)), (4,), torch.randn(16, 4)), CLOCK)
        for net, times in ((nets.student, simulated), (nets.fake, fake), (nets.teacher, teacher)):
            assert [t[0].item() for t, _ in net.network.asked] == pytest.approx(times, rel=1e-9)
            assert all(
                t.eq(t[0]).all() and torch.equal(label, labels) for t, label in net.network.asked
            )


def test_the_student_is_pushed_to_where_logits_rise_and_the_head_apart():
    method = DMD2(gan=1.0, gan_fake=1.0)
    leaf = leaf_of(dtype=torch.float32)
    nets = adversaries(Judge(2.0), student=lambda x, t: leaf * 1)
    losses = method.loss(nets, batch(16, (4,), x0=torch.randn(16, 4)), CLOCK)
    (grad,) = torch.autograd.grad(losses.terms["adversarial"].sum(), leaf)
    assert (grad < 0).all()
    judge = Judge(0.0)
    nets = adversaries(judge, student=lambda x, t: torch.full_like(x, -1.0))
    fake_loss = method.fake_loss(nets, batch(4000, (64,), x0=torch.ones(4000, 64)), CLOCK)
    fake_loss.terms["discriminator"].mean().backward()
    assert judge.k.grad < 0  # a larger k tells data at 1 from samples at -1
    assert judge.bias.grad == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", ["fake_loss", "loss"])
@pytest.mark.parametrize("steps", [1, 3])
def test_without_adversarial_terms_no_image_is_read(loss, steps):
    assert DMD2(**MATCHING).needs == set()
    assert DMD2().needs == {"x0"}
    nets = functions(
        lambda x, t: x / (1 + t[:, None]).to(x), lambda x, t: 0.5 * x, lambda x, t: 0.4 * x
    )
    method = DMD2(**MATCHING, steps=steps)
    found = [
        getattr(method, loss)(nets, batch(16, (4,), x0=x0), CLOCK).terms
        for x0 in (None, torch.randn(16, 4), torch.full((16, 4), math.nan))
    ]
    for terms in found[1:]:
        assert terms.keys() == found[0].keys()
        assert all(torch.equal(terms[key], found[0][key]) for key in terms)
    with pytest.raises(AssertionError, match="x0"):
        DMD2().fake_loss(adversaries(Judge()), batch(16, (4,)), CLOCK)


@pytest.mark.parametrize(
    "shape", [(2, 6, 4, 5), (2, 12, 6), (1, 6, 1, 1)], ids=["map", "tokens", "one place"]
)
def test_the_head_by_its_definition(shape):
    """Convolution of each place with its neighbours, norm over groups, SiLU, one number a place,
    their mean.
    """
    torch.manual_seed(3)
    channels = shape[2] if len(shape) == 3 else shape[1]
    head, features = Head(channels, width=16, groups=4), torch.randn(shape)
    found = head(features)
    head, features = head.double(), features.double()
    maps = features.transpose(1, 2)[:, :, None] if len(shape) == 3 else features  # tokens are a row
    conv, norm, _, last = head.body
    rows, columns = maps.shape[2:]
    padded = F.pad(maps, (1, 1, 1, 1))
    hidden = torch.zeros(len(maps), 16, rows, columns, dtype=torch.float64) + conv.bias.view(
        1, -1, 1, 1
    )
    for i in range(3):
        for j in range(3):
            shifted = padded[:, :, i : i + rows, j : j + columns]
            hidden = hidden + torch.einsum("oc,bchw->bohw", conv.weight[:, :, i, j], shifted)
    groups = hidden.reshape(len(maps), 4, -1)
    centred = groups - groups.mean(2, keepdim=True)
    groups = centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()
    hidden = groups.view_as(hidden) * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    hidden = hidden * torch.sigmoid(hidden)
    places = torch.einsum("c,bchw->bhw", last.weight[0, :, 0, 0], hidden) + last.bias
    assert found.shape == (shape[0],)
    close(found, places.flatten(1).mean(1), rtol=1e-5, atol=1e-6)


def test_the_heads_logit_of_a_row_is_its_own():
    head, features = Head(6), torch.randn(5, 6, 4, 4)
    order = torch.tensor([3, 1, 4, 0, 2])
    close(head(features[order]), head(features)[order], rtol=1e-5, atol=1e-6)
    close(head(features[1:2]), head(features)[1:2], rtol=1e-5, atol=1e-6)
    assert head(features.half()).dtype == torch.float32


# What the student is evaluated on


@pytest.mark.parametrize(
    "process", [VE, VariancePreserving(), VariancePreservingTable()], ids=lambda p: type(p).__name__
)
def test_one_step_is_pure_noise_at_the_last_time(process):
    student = Seen(lambda x, t: 0.1 * x)
    nets = functions(student, lambda x, t: 0.5 * x, lambda x, t: 0.4 * x, process)
    for seed in range(5):
        DMD2(**MATCHING).loss(nets, batch(16, (4,), seed), CLOCK)
        draws = Draws(seed, range(16))
        draws.choice(1)
        ((x, t),) = student.asked
        assert torch.equal(x, process.prior(draws.normal(4)))
        assert (t == process.t_max).all()
        student.asked.clear()


@every("process", PROCESSES)
def test_the_student_learns_at_what_its_own_sampler_shows_it(process):
    """At time k, what `Renoise` with the same noise asks the student at its evaluation k (invariant
    10).
    """
    process = narrowed(process)
    method = DMD2(**MATCHING, steps=3)
    student = Seen(lambda x, t: torch.tanh(x) + 0.01 * t[:, None].to(x))
    nets = functions(student, lambda x, t: 0.5 * x, lambda x, t: 0.4 * x, process)
    found = []
    for seed in range(12):
        student.asked.clear()
        made = method.made(nets.student, batch(16, (4,), seed))
        asked = list(student.asked)
        draws = Draws(seed, range(16))
        assert draws.choice(3) == len(asked) - 1
        student.asked.clear()
        noise = draws.normal(4)
        sampler = method.sampler(CLOCK)
        assert sampler == Renoise(3, method.sample_times)
        sampler(nets.student, process, noise, Cond(), draws)
        for (x, t), (x_sampler, t_sampler) in zip(asked, student.asked):
            assert torch.equal(x, x_sampler)
            assert torch.equal(t, t_sampler)
        close(made, nets.student(*asked[-1], Cond()), rtol=0, atol=0)
        found.append(len(asked))
    assert sorted(set(found)) == [1, 2, 3]


def test_the_first_of_several_steps_is_the_only_one_of_one():
    """k = 0 equals training with steps=1, bit by bit."""
    student = lambda x, t: torch.tanh(x)  # noqa: E731
    nets = functions(student, lambda x, t: 0.5 * x, lambda x, t: 0.4 * x)
    seeds = [seed for seed in range(20) if Draws(seed, range(1)).choice(3) == 0]
    assert len(seeds) >= 3
    for seed in seeds:
        one, three = (
            DMD2(**MATCHING, steps=n).loss(nets, batch(16, (4,), seed), CLOCK).terms["matching"]
            for n in (1, 3)
        )
        assert torch.equal(one, three)


def test_all_rows_and_micro_batches_share_the_time():
    """Whole, in halves, and as two processes would see it: one k, the same samples."""
    method, student = (
        DMD2(**MATCHING, steps=3),
        Seen(lambda x, t: torch.tanh(x) / (1 + t[:, None]).to(x)),
    )
    net = denoising(VE, student)
    counts = []
    for seed in range(30):
        parts = []
        for rows in (range(32), range(20), range(20, 32)):
            student.asked.clear()
            parts.append(
                method.made(
                    net, Batch(Cond(), Draws(seed, rows, stream="loss", step=3, update=1), (4,))
                )
            )
            assert all(len(t.unique()) == 1 for _, t in student.asked)
            counts.append(len(student.asked))
        assert counts[-1] == counts[-2] == counts[-3]
        assert torch.equal(torch.cat(parts[1:]), parts[0])
    share = torch.bincount(torch.tensor(counts))[1:] / len(counts)
    assert (share > 0.15).all()  # 30 draws: each of the three a third, less three standard errors


def test_each_update_of_a_step_draws_its_own_time():
    method, student = DMD2(**MATCHING, steps=3), Seen(lambda x, t: x / 80)
    counts = []
    for update in range(12):
        student.asked.clear()
        method.made(
            denoising(VE, student), Batch(Cond(), Draws(0, range(4), step=2, update=update), (4,))
        )
        counts.append(len(student.asked))
    assert len(set(counts)) == 3


@pytest.mark.parametrize(
    "process", [VE, VariancePreserving(), VariancePreservingTable()], ids=lambda p: type(p).__name__
)
def test_what_is_noised_again_has_the_variance_of_its_time(process):
    """alpha² + sigma² for samples of unit variance: 1 for the variance-preserving (invariant
    10).
    """
    end = f64(process.t_min)
    spread = torch.hypot(
        process.alpha(end), process.sigma(end)
    ).item()  # of unit data, at the end of a jump
    generator = torch.Generator().manual_seed(0)
    student = Seen(lambda x, t: spread * torch.randn(x.shape, generator=generator))
    net = denoising(process, student)
    for seed in range(6):
        DMD2(**MATCHING, steps=3).made(net, batch(512, (64,), seed))
    inner = [(x, t) for x, t in student.asked if t[0] < process.t_max]
    assert len({float(t[0]) for _, t in inner}) == 2
    for x, t in inner:
        expected = (process.alpha(t[:1]) ** 2 + process.sigma(t[:1]) ** 2).item()
        assert x.var().item() == pytest.approx(expected, rel=4 * math.sqrt(2 / x.numel()))
        if not isinstance(process, VarianceExploding):
            assert expected == pytest.approx(1, rel=1e-9)


def test_only_the_last_evaluation_carries_a_gradient():
    """Backward simulation is input, not part of the loss: d made / d weight is that of one
    evaluation.
    """
    weight = torch.tensor(0.7, requires_grad=True)
    student = Seen(lambda x, t: weight * torch.tanh(x))
    net = denoising(VE, student)
    seed = next(seed for seed in range(20) if Draws(seed, range(1)).choice(3) == 2)
    made = DMD2(**MATCHING, steps=3).made(net, batch(16, (4,), seed))
    (grad,) = torch.autograd.grad(made.sum(), weight)
    assert len(student.asked) == 3
    close(grad, torch.tanh(student.asked[-1][0]).sum(), rtol=1e-6)


# Through the trainer


def grads(one):
    return {
        name: any(p.grad is not None and p.grad.any() for p in module.parameters())
        for name, module in one.state.modules.items()
    }


@pytest.mark.parametrize("gan", [0.0, 0.1])
def test_who_gets_a_gradient_in_which_update(gan, monkeypatch):
    """Teacher never; the student none when fake learns, fake and head none when the student does
    (invariant 4).
    """
    one = real(DMD2(fake_steps=2, gan=gan, gan_fake=gan), None, config(steps=2))
    found = []
    forget = one.state.forget_gradients
    monkeypatch.setattr(
        one.state,
        "forget_gradients",
        lambda names: (found.append((names, grads(one))), forget(names)),
    )
    one.fit()
    nobody = dict.fromkeys(("student", "fake", "head", "teacher"), False)
    learns = ("fake", "head"), {**nobody, "fake": True, "head": gan > 0}
    moves = ("student",), {**nobody, "student": True}
    assert found == [learns, learns, moves] * 2
    assert grads(one) == nobody


@pytest.mark.parametrize("fake_steps", [1, 3, 5])
def test_the_student_is_updated_once_per_so_many_of_the_fakes(fake_steps):
    one = real(DMD2(fake_steps=fake_steps), None, config(steps=4))
    before = state(one)
    one.fit()
    after = state(one)
    counts = {name: int(after[f"optimizer/{name}/0/step"]) for name in ("student", "fake", "head")}
    assert counts == {"student": 4, "fake": 4 * fake_steps, "head": 4 * fake_steps}
    assert one.batches == 4 * (fake_steps + 1)
    assert_same(part(after, "net/teacher"), part(before, "net/teacher"))
    for name in counts:
        assert all(
            (after[key] != before[key]).any()
            for key in part(before, f"net/{name}")
            if "weight" in key
        ), name


def test_fake_learns_before_the_student_moves():
    """The first update of the student sees a fake that has learnt `fake_steps` times, on as many
    batches.
    """
    updates = DMD2(fake_steps=3).updates(CLOCK)
    assert [update.trains for update in updates] == [("fake", "head")] * 3 + [("student",)]


def test_the_student_keeps_the_identity_at_t_min_through_training():
    """A boundary is made of whatever it starts from, and one that is there already stays (invariant
    11).
    """
    starts = {
        Edm(): CmBoundary(0.5),
        SamplePrediction(): ConsistencyBoundary(SamplePrediction()),
        CmBoundary(0.4): CmBoundary(0.4),
    }
    x, t = torch.randn(4, *SHAPE), torch.full((4,), VE.t_min, dtype=torch.float64)
    for parameterization, expected in starts.items():
        start = model(seed=1).denoiser
        start.parameterization = parameterization
        method, chosen = DMD2(fake_steps=1), config(steps=3)
        nets = method.build_nets(model(), FullCopy().clones(start))
        one = Trainer(method, nets, data(), chosen)
        assert one.nets.student.parameterization == expected
        assert one.nets.fake.parameterization == one.nets.teacher.parameterization == Edm()
        one.fit()
        assert torch.equal(one.nets.student(x, t, Cond()), x)
        assert not torch.equal(one.nets.student(x, 2 * t, Cond()), x)


def test_fake_begins_as_the_teacher_and_the_student_as_its_start():
    of, start = model(seed=1), model(seed=2).denoiser
    nets = DMD2().build_nets(of, FullCopy().clones(start))
    assert_same(dict(nets.fake.state_dict()), dict(of.denoiser.state_dict()))
    assert_same(dict(nets.student.state_dict()), dict(start.state_dict()))
    assert nets.teacher is of.denoiser
    storages = [
        {p.data_ptr() for p in net.parameters()} for net in (nets.student, nets.fake, nets.teacher)
    ]
    assert not storages[0] & storages[1]
    assert not storages[1] & storages[2]


def test_dropout_is_off_in_the_teacher():
    """Spec 9.15: the seed's teacher had dropout 0.1 in use; a frozen network is in eval mode."""
    one = real(DMD2(fake_steps=1), None, config(steps=1), of=model(dropout=0.5))
    x, t = torch.randn(4, *SHAPE), f64(1, 1, 1, 1)
    assert torch.equal(one.nets.teacher(x, t, Cond()), one.nets.teacher(x, t, Cond()))


def test_student_and_fake_have_no_dropout():
    """Both are in training mode, so theirs is 0 itself, whatever the start's or the run's."""
    one = real(DMD2(), of=model(dropout=0.5), dropout=0.3)
    x, t = torch.randn(4, *SHAPE), f64(1, 1, 1, 1)
    for net in (one.nets.student, one.nets.fake):
        assert net.training
        assert torch.equal(net(x, t, Cond()), net(x, t, Cond()))
