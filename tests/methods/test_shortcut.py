"""Shortcut models: their optimum is a chain of first-order steps over the finest grid, for jumps of
every length.
"""

import math

import pytest
import torch
from tests.methods.students import assert_guides_only_what_knows_no_label, samples
from tests.oracles import Gaussian, batch_of
from tests.stand_ins import Answer, Exact, Masked, answering, net
from torch import nn

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.parameterization import SamplePrediction
from fewstep.diffusion.process import RectifiedFlow, VarianceExploding, VariancePreservingTable
from fewstep.diffusion.solvers import Euler
from fewstep.diffusion.times import Linspace
from fewstep.diffusion.types import per_sample
from fewstep.learning.batch import Batch
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.method import Clock, Method
from fewstep.learning.tangent import rectified
from fewstep.methods.shortcut import Shortcut

CLOCK = Clock(0, 100, 64)
PROCESSES = [VarianceExploding(), VariancePreservingTable(), RectifiedFlow()]


def kind(value):
    return type(value).__name__


class Chain:
    """Every jump between two times of a grid, as the x0 that does what all first-order steps
    between do.
    """

    def __init__(self, process, grid, std=0.5):
        self.process, self.grid = process, grid
        steps = Gaussian(process, 0.0, std).step_gain(grid[:-1], grid[1:])
        self.total = torch.cat([torch.zeros(1, dtype=torch.float64), torch.log(steps).cumsum(0)])

    def place(self, t):
        return (self.grid - t[:, None]).abs().argmin(1)

    def gain(self, t, s):
        return torch.exp(self.total[self.place(s)] - self.total[self.place(t)])

    def __call__(self, x, t, s):
        return self.process.x0_between(x, per_sample(self.gain(t, s), x) * x, t, s)


@pytest.mark.parametrize("process", PROCESSES, ids=kind)
def test_the_chain_of_first_order_steps_has_no_loss(process):
    method = Shortcut(intervals=16, velocity="teacher", bootstrap=0.7)
    chain = answering(process, Chain(process, method.times(process, 16)))
    parts = method.Nets(chain, chain, Exact(process, Gaussian(process, 0.0, 0.5)))
    losses = method.loss(parts, batch_of(samples(512, d=3)), CLOCK)
    assert losses.terms["shortcut"].max() < 1e-16
    off = answering(process, lambda x, t, s: 1.001 * chain.network.function(x, t, s))
    parts = method.Nets(off, off, parts.teacher)
    assert method.loss(parts, batch_of(samples(512, d=3)), CLOCK).terms["shortcut"].max() > 1e-8


def test_the_exact_flow_map_satisfies_the_identity_of_two_halves():
    """u(2d) = ½ u(d) + ½ u'(d) (6.8): the rows that bootstrap have no loss, whatever the
    process.
    """
    for process in PROCESSES:
        data = Gaussian(process, 0.3, 0.5)
        method = Shortcut(intervals=16, bootstrap=1.0)
        exact = answering(process, data.jump)
        losses = method.loss(method.Nets(exact, exact, None), batch_of(0.3 + samples(256)), CLOCK)
        assert losses.terms["shortcut"].max() < 1e-16


class Look(nn.Module):
    """Writes down what it is asked."""

    inputs = ("s",)

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, x, t, cond, s=None):
        self.asked.append((x, t, s))
        return torch.tanh(x)


def test_rectified_flow_as_published():
    """Jumps of d = 2^-k begin at multiples of d; half of each is d/2; one interval learns noise -
    x0.
    """
    process = RectifiedFlow(t_min=1e-9)
    method = Shortcut(intervals=128, times=Linspace("t_min"), bootstrap=0.5)
    student, target = Look(), Look()
    parts = method.Nets(
        *(Denoiser(net, process, SamplePrediction()) for net in (student, target)), None
    )
    losses = method.loss(parts, batch_of(samples(4096)), CLOCK)
    ((x, t, s),) = student.asked
    (_, first, middle), (half, second, end) = target.asked
    d = t - s
    level = -torch.log2(d)
    assert (level - level.round()).abs().max() < 1e-5
    assert sorted(set(level.round().int().tolist())) == list(range(8))
    place = (1 - t) / d
    assert (place - place.round()).abs().max() < 1e-5
    assert (s >= 0).all()
    boots = level.round() < 7
    assert boots.double().mean().item() == pytest.approx(0.5, abs=0.03)
    counts = [(level.round() == k).double().mean().item() for k in range(7)]
    assert counts == pytest.approx([0.5 / 7] * 7, abs=0.02)
    assert torch.equal(first, t)
    torch.testing.assert_close((t - middle)[boots], d[boots] / 2, rtol=1e-5, atol=0)
    assert torch.equal(middle, second)
    assert torch.equal(end, s)

    def u(x, t):
        return (x - torch.tanh(x)) / t[:, None]

    doubled = 0.5 * (u(x, t) + u(half, middle))
    error = (u(x, t) - doubled).square().mean(1)
    torch.testing.assert_close(
        losses.notes["bootstrap"][boots].double(), error[boots], rtol=1e-3, atol=1e-6
    )
    torch.testing.assert_close(
        half[boots], (x - (d / 2)[:, None] * u(x, t))[boots], rtol=1e-5, atol=1e-6
    )
    x0 = samples(4096)
    plain = ((torch.tanh(x) - x0) / t[:, None]).square().mean(1)
    torch.testing.assert_close(
        losses.notes["one"][~boots], plain[~boots].to(losses.notes["one"]), rtol=1e-4, atol=1e-9
    )


class Table(nn.Module):
    """x0 = gain·x with a number for each (time, length) of the grid."""

    inputs = ("s",)

    def __init__(self, grid):
        super().__init__()
        self.grid = grid
        self.gains = nn.Parameter(torch.zeros(len(grid), len(grid), dtype=torch.float64))

    def place(self, t):
        return (self.grid - t[:, None]).abs().argmin(1)

    def forward(self, x, t, cond, s=None):
        return per_sample(self.gains[self.place(t), self.place(s)], x) * x


def test_training_reaches_the_chain():
    """The regression solved exactly level by level: fitted on the method's own loss, every jump is
    its chain.
    """
    process = VarianceExploding()
    method = Shortcut(intervals=8, velocity="teacher", bootstrap=0.6)
    grid = method.times(process, 8)
    tables = Table(grid), Table(grid)
    parts = method.Nets(
        *(Denoiser(net, process, SamplePrediction()) for net in tables),
        Exact(process, Gaussian(process, 0.0, 0.5)),
    )
    for rounds in range(5):  # the levels 0 … 3 become right one after the other
        method.loss(parts, batch_of(samples(2048, rounds), rounds), CLOCK).terms[
            "shortcut"
        ].sum().backward()
        with torch.no_grad():  # a quadratic in each number: Newton's step from two gradients
            before, old = tables[0].gains.grad.clone(), tables[0].gains.clone()
            tables[0].gains += 1
        tables[0].gains.grad = None
        method.loss(parts, batch_of(samples(2048, rounds), rounds), CLOCK).terms[
            "shortcut"
        ].sum().backward()
        with torch.no_grad():
            slope = tables[0].gains.grad - before
            tables[0].gains.copy_(
                torch.where(slope > 0, old - before / slope.clamp(min=1e-30), old)
            )
        tables[0].gains.grad = None
        parts.target.load_state_dict(parts.student.state_dict())
    chain = Chain(process, grid)
    for length in (1, 2, 4, 8):
        for first in range(0, 9 - length, length):
            t, s = grid[first : first + 1], grid[first + length : first + length + 1]
            one = torch.ones(1, 1, dtype=torch.float64)
            made = process.step(one, parts.student(one, t, Cond(), s), t, s).item()
            assert made == pytest.approx(chain.gain(t, s).item(), rel=1e-6)


def test_golden_gains_of_euler_on_rectified_flow():
    """N(0, 1): 128 steps .9900079, 4 steps .72, 1 step 0; and a jump learned from the 128 is the
    same.
    """
    process = RectifiedFlow(t_min=1e-12)
    data = Gaussian(process, 0.0, 1.0)
    for steps, gain in ((128, 0.9900079), (4, 0.72), (1, 0.0)):
        grid = Linspace()(process, steps)
        x = torch.ones(1, 1, dtype=torch.float64)
        for t, s in zip(grid, grid[1:]):
            x = Euler()(data, process, x, t[None], s[None], Cond())
        assert x.item() == pytest.approx(gain, abs=1e-6)
    grid = Linspace("t_min")(process, 128)
    assert Chain(process, grid, 1.0).gain(grid[:1], grid[-1:]).item() == pytest.approx(
        0.9900079, abs=1e-6
    )


@pytest.mark.parametrize("steps", [1, 2, 4, 16])
def test_the_sampler_walks_jumps_that_were_trained(steps):
    process = VariancePreservingTable()
    method = Shortcut(intervals=16)
    grid = method.times(process, 16)
    sampler = method.sampler(CLOCK).with_steps(steps)
    assert torch.equal(sampler.times(process, steps), grid[:: 16 // steps])
    noise = torch.randn(8, 2, dtype=torch.float64)
    chain = Chain(process, grid)
    made = sampler(answering(process, chain), process, noise, Cond(), Draws(0, range(8)))
    torch.testing.assert_close(made, chain.gain(grid[:1], grid[-1:]) * noise)


class Labelled(nn.Module):
    """1 with the label, 0 without."""

    inputs = ("label", "s")

    def forward(self, x, t, cond, s=None):
        return torch.where((cond["label"] == 9)[:, None], 0.0, 1.0).to(x).expand_as(x)


def test_guidance_enters_at_two_intervals_alone():
    process = VarianceExploding()
    method = Shortcut(
        intervals=8, guidance=GuidanceRange(3.0, 3.0), bootstrap=0.7, label_dropout=0.0
    )
    net = Denoiser(Labelled(), process, SamplePrediction())
    look = Look()
    parts = method.Nets(Denoiser(look, process, SamplePrediction()), net, None)
    labels = torch.zeros(256, dtype=torch.long)
    batch = Batch(
        Cond({"label": labels}, {"label": labels + 9}), Draws(0, range(256)), (1,), samples(256)
    )
    losses = method.loss(parts, batch, CLOCK)
    ((x, t, s),) = look.asked
    grid = method.times(process, 8)
    length = (grid - s[:, None]).abs().argmin(1) - (grid - t[:, None]).abs().argmin(1)
    goal = torch.where(length == 2, 3.0, 1.0)
    expected = (
        ((torch.tanh(x) - goal[:, None].to(x)) / rectified(process, t)[:, None]).square().mean(1)
    )
    found = losses.notes["bootstrap"]
    torch.testing.assert_close(
        found[length > 1], expected[length > 1].to(found), rtol=1e-4, atol=1e-6
    )
    assert set(length.tolist()) == {1, 2, 4, 8}


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({"velocity": "teacher"}, 0.0),
        ({"guidance": GuidanceRange(2.0, 2.0), "label_dropout": 0.5}, 0.5),
    ],
)
def test_labels_are_dropped_only_under_guidance_and_for_all_networks_alike(options, share):
    process, asked = VarianceExploding(), {}

    def watched(name):
        def answer(x, t, cond, s):
            asked.setdefault(name, []).append(cond["label"])
            return 0.5 * x

        return net(process, answer, ("label", "s"))

    method = Shortcut(intervals=8, **options)
    parts = method.Nets(*(watched(name) for name in ("student", "target", "teacher")))
    nothing = torch.ones(512, dtype=torch.long)
    method.loss(
        parts, batch_of(samples(512), cond=Cond({"label": 0 * nothing}, {"label": nothing})), CLOCK
    )
    (told,), (first, second) = (asked[name] for name in ("student", "target"))
    assert told.double().mean().item() == pytest.approx(share, abs=0.07)
    assert all(torch.equal(teacher, told) for teacher in asked.get("teacher", ()))
    both = (
        torch.cat([told, nothing]) if share else told
    )  # the rows of a guided pass: with their labels, and without
    assert torch.equal(first, both)
    assert torch.equal(second, both)


def test_a_guided_teacher_gives_one_interval_its_guidance():
    """Which longer ones then have from it: the target's jumps are taken as they are."""
    process, scale = VarianceExploding(), GuidanceRange(3.0, 3.0)
    method = Shortcut(intervals=8, velocity="teacher", bootstrap=0.0, guidance=scale)
    zero = answering(process, lambda x, t, s: torch.zeros_like(x))
    parts = method.Nets(zero, zero, Denoiser(Labelled(), process, SamplePrediction()))
    labels = torch.zeros(64, dtype=torch.long)
    batch = batch_of(samples(64), cond=Cond({"label": labels}, {"label": labels + 9}))
    found = method.loss(parts, batch, CLOCK).terms["shortcut"]
    draws = batch_of(samples(64)).draws
    draws.uniform(), draws.integers(3)
    t = method.times(process, 8)[(draws.uniform() * 8).long()]
    torch.testing.assert_close(found, (3.0 / rectified(process, t)).square().to(found))


def test_one_interval_learns_what_the_teacher_says_of_the_label():
    process = VarianceExploding()
    method = Shortcut(intervals=8, velocity="teacher", bootstrap=0.0)
    zero = answering(process, lambda x, t, s: torch.zeros_like(x))
    parts = method.Nets(zero, zero, Denoiser(Labelled(), process, SamplePrediction()))
    labels = torch.tensor([0, 9]).repeat(32)
    cond = Cond({"label": labels}, {"label": torch.full_like(labels, 9)})
    found = method.loss(parts, batch_of(samples(64), cond=cond), CLOCK).notes["one"]
    assert (found[labels == 0] > 0.9).all()  # ((0 - 1)/τ)², τ < 1
    assert (found[labels == 9] == 0).all()


def test_the_jumps_of_the_target_have_no_dropout():
    process = VarianceExploding()
    method = Shortcut(intervals=16, bootstrap=1.0)
    chain = Chain(process, method.times(process, 16))
    target = Denoiser(Masked(chain), process, SamplePrediction())
    losses = method.loss(
        method.Nets(answering(process, chain), target, None), batch_of(samples(256)), CLOCK
    )
    assert losses.terms["shortcut"].max() < 1e-16
    assert target.network.drop.training


def test_guidance_needs_a_teacher_that_knows_no_label():
    assert_guides_only_what_knows_no_label(Shortcut(), Shortcut(guidance=GuidanceRange(2.0, 2.0)))


def test_the_target_carries_no_gradient_and_moves_slowly():
    process = VarianceExploding()
    method = Shortcut(intervals=8, target_decay=0.9)
    student, target, teacher = (nn.Linear(1, 1).double() for _ in range(3))

    def made(net):
        network = Answer(lambda x, t, s: net(x))
        network.body = net
        return Denoiser(network, process, SamplePrediction())

    parts = method.Nets(*(made(net) for net in (student, target, teacher)))
    method.loss(parts, batch_of(samples(64)), CLOCK).terms["shortcut"].sum().backward()
    assert student.weight.grad is not None
    assert target.weight.grad is None
    assert teacher.weight.grad is None
    before = target.weight.clone()
    method.after_step(parts, CLOCK)
    torch.testing.assert_close(target.weight, 0.9 * before + 0.1 * student.weight)


def test_options():
    for wrong in (1, 12, 100):
        with pytest.raises(ValueError, match="power of 2"):
            Shortcut(intervals=wrong)
    with pytest.raises(ValueError, match="1 validation error"):
        Method.parse({"kind": "shortcut", "bootstrap": 2})
    assert Shortcut(guidance=GuidanceRange(1.5, 1.5)).student_guidance().default == 1.5
    assert math.log2(Shortcut().intervals) == 7
