"""Phased consistency: multi-boundary distillation with other boundaries, and a discriminator at
each phase's end.
"""

import pytest
import torch
from tests.diffusion.cases import close, every, f64, rows
from tests.methods.chains import PROCESSES, TABLE, Chain, descend, samples
from tests.oracles import Gaussian, batch_of
from tests.stand_ins import GainTable, net
from torch import nn

from fewstep.contracts.trial import teacher
from fewstep.data.digits import Digits
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.process import VarianceExploding
from fewstep.diffusion.samplers import Ode, renoised
from fewstep.diffusion.solvers import Euler
from fewstep.diffusion.times import Auto, Trailing
from fewstep.learning.consistency import at_or_above, at_or_below
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.losses import Squared
from fewstep.learning.method import Clock
from fewstep.methods.multi_boundary import MultiBoundary
from fewstep.methods.phased_consistency import PhasedConsistency
from fewstep.models.adapters import FullCopy

CLOCK = Clock(0, 100, 64)
VE = VarianceExploding()
PLAIN = {"adversarial": 0.0}


def loss(method, nets, x0, seed=0):
    return method.loss(nets, batch_of(x0, seed), CLOCK).terms["consistency"]


def ends_of(method, process):
    """t -> e by the paper's rule on rising indices: start j belongs to the last phase start p <= j
    and ends below p.
    """
    rising = (
        method.times(process, method.bins).flip(0).tolist()
    )  # rising[j + 1] is start j, rising[0] the end
    starts = [k * method.bins // method.segments for k in range(method.segments)]

    def ends(t):
        places = [
            min(range(1, len(rising)), key=lambda i, u=u: abs(rising[i] - u)) - 1
            for u in t.tolist()
        ]
        return f64(*(rising[max(p for p in starts if p <= j)] for j in places))

    return ends


def test_the_published_phases():
    """Starts 0, 12, 25, 37 of 50: ends at index 0, 239, 499, 739, with 12, 13, 12 and 13 starting
    times.
    """
    method = PhasedConsistency()
    grid, bounds = method.times(TABLE, 50), method.ends(TABLE, 4)
    assert grid.tolist() == [*range(999, 0, -20), 0]
    assert bounds.tolist() == [999, 739, 499, 239, 0]
    ends = at_or_below(bounds, grid[1:])
    assert torch.equal(ends, ends_of(method, TABLE)(grid[:-1]))
    assert [int((ends == e).sum()) for e in (0, 239, 499, 739)] == [12, 13, 12, 13]
    assert method.sampler(CLOCK).times(TABLE, 4).tolist() == [999, 739, 499, 239, 0]


@every("process", PROCESSES)
@pytest.mark.parametrize("m", [1, 2, 5])
def test_it_is_multi_boundary_distillation_where_the_boundaries_agree(process, m):
    """The same numbers, bit by bit, where m divides the grid or the same boundaries are chosen."""
    data = Gaussian(process, 0.3, 0.5)
    pair = (net(process, lambda x, t, cond, s: torch.tanh(x)), net(process, data))
    x0 = samples(128, data)
    mine = PhasedConsistency(segments=m, **PLAIN)
    theirs = MultiBoundary(segments=m, times=Auto("t_min", trailing=True))
    assert torch.equal(
        loss(mine, mine.Nets(pair[0], nn.Identity(), pair[1]), x0),
        loss(theirs, theirs.Nets(*pair), x0),
    )
    mine = PhasedConsistency(segments=4, **PLAIN)
    theirs = MultiBoundary(
        boundaries=tuple(mine.ends(process, 4)[1:-1].tolist()), times=Auto("t_min", trailing=True)
    )
    assert torch.equal(
        loss(mine, mine.Nets(pair[0], nn.Identity(), pair[1]), x0),
        loss(theirs, theirs.Nets(*pair), x0),
    )


@every("process", PROCESSES)
@pytest.mark.parametrize("m", [1, 2, 4, 8])
def test_at_zero_loss_the_student_samples_what_all_fine_steps_give(process, m):
    method, data = PhasedConsistency(segments=m, **PLAIN), Gaussian(process, 0.3, 0.5)
    chain = Chain(data, method.times(process, 50), ends_of(method, process))
    nets = method.Nets(net(process, chain), nn.Identity(), net(process, data))
    assert loss(method, nets, samples(512, data)).abs().max() < 1e-10
    noise, draws = torch.randn(16, 1).double(), Draws(0, range(16))
    made = method.sampler(CLOCK)(nets.student, process, noise, Cond(), draws)
    fine = Ode(50, method.times, Euler())(nets.teacher, process, noise, Cond(), Draws(1, range(16)))
    close(made, fine, rtol=1e-6, atol=1e-7)
    assert draws.count == 0


def test_training_reaches_the_chain():
    method, data = (
        PhasedConsistency(segments=2, bins=5, distance=Squared(), **PLAIN),
        Gaussian(VE, 0.0, 0.5),
    )
    grid, ends = method.times(VE, 5), ends_of(method, VE)
    student = GainTable(VE, grid, ends)
    nets = method.Nets(student, nn.Identity(), net(VE, data))
    descend(
        student.parameters(),
        lambda k: loss(method, nets, samples(32, data, k), k).mean(),
        300,
        0.04,
    )
    chain, t = Chain(data, grid), grid[:-1]
    found = student.gains[chain.place(t), chain.place(ends(t))].detach()
    close(found, chain.gain(t, ends(t)), rtol=0, atol=5e-4)


# The discriminator


class Told(nn.Module):
    """A head that answers a fixed number, or the mean of what it reads."""

    def __init__(self, value=None):
        super().__init__()
        self.value = value

    def forward(self, x):
        return (
            x.flatten(1).mean(1) if self.value is None else torch.full((len(x),), float(self.value))
        )


def real(method):
    digits = Digits(limit=64).dataset()
    model = teacher(VarianceExploding())
    nets = method.build_nets(model, FullCopy().clones(model.denoiser))
    nets.teacher.requires_grad_(False)
    cond = model.conditioner({"label": torch.arange(8)})
    return nets, lambda: batch_of(
        torch.randn(8, *digits.shape, generator=torch.Generator().manual_seed(0)), cond=cond
    )


@pytest.mark.parametrize(
    ("answer", "head", "student"), [(0, 2, 0.1), (1, 2, 0), (-1, 2, 0.2), (3, 4, 0), (-3, 4, 0.4)]
)
def test_the_hinge(answer, head, student):
    """relu(1 - D) + relu(1 + D) for a head that cannot tell, and 0.1 relu(1 - D) for the
    student.
    """
    method = PhasedConsistency()
    nets, batch = real(method)
    nets.head = Told(answer)
    close(method.head_loss(nets, batch(), CLOCK).terms["discriminator"], rows(head, 8))
    close(
        method.loss(nets, batch(), CLOCK).terms["adversarial"],
        rows(student, 8),
        rtol=1e-6,
    )


def test_the_student_learns_through_the_teachers_features_and_nothing_else_moves():
    method = PhasedConsistency()
    nets, batch = real(method)
    nets.head.requires_grad_(False)
    method.loss(nets, batch(), CLOCK).terms["adversarial"].sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in nets.student.parameters())
    assert all(p.grad is None for net in (nets.teacher, nets.head) for p in net.parameters())
    nets.head.requires_grad_(True)
    nets.student.zero_grad()
    method.head_loss(nets, batch(), CLOCK).terms["discriminator"].sum().backward()
    assert all(p.grad is None for net in (nets.teacher, nets.student) for p in net.parameters())
    assert any(p.grad is not None and p.grad.any() for p in nets.head.parameters())


@every("process", PROCESSES)
def test_the_discriminators_noise_level_is_any_of_the_phase(process):
    method, data = PhasedConsistency(), Gaussian(process)
    nets = method.Nets(net(process, data), nn.Identity(), net(process, data))
    batch = batch_of(samples(4096, data))
    jumps = method.jumps(nets, batch)
    level = method.level(nets, jumps, batch)
    bounds = method.ends(process, 4)
    assert ((jumps.end <= level) & (level <= jumps.top)).all()
    assert torch.equal(at_or_above(bounds, jumps.end + 1e-9), jumps.top)
    for low, top in zip(bounds[1:], bounds):
        grid = method.times(process, 50)
        inside = grid[(grid >= low) & (grid <= top)]
        seen = level[jumps.end == low]
        assert set(seen.tolist()) == set(inside.tolist())
        share = torch.stack([(seen == u).double().mean() for u in inside])
        close(
            share,
            torch.full_like(share, 1 / len(inside)),
            rtol=0,
            atol=5 * (1 / len(inside) / len(seen)) ** 0.5,
        )


def test_noising_keeps_the_marginal():
    """From a phase's end to a level above it: x ~ N(alpha mean, spread²) stays so (1-D, 200,000
    samples).
    """
    data = Gaussian(TABLE, 0.3, 0.5)
    for low, high in ((0, 239), (239, 479), (499, 499), (739, 999)):
        s, t = rows(low, 200_000), rows(high, 200_000)
        x_s = (
            TABLE.alpha(s)[:, None] * 0.3
            + data.spread(s)[:, None] * torch.randn(200_000, 1).double()
        )
        x_t = renoised(TABLE, x_s, torch.randn(200_000, 1).double(), s, t)
        spread = data.spread(t)[0].item()
        assert x_t.std().item() == pytest.approx(spread, rel=4 / (2 * 200_000) ** 0.5)
        assert x_t.mean().item() == pytest.approx(
            0.3 * TABLE.alpha(t)[0].item(), abs=4 * spread / 200_000**0.5
        )


def test_the_goal_is_real_and_the_jump_is_made(monkeypatch):
    """At the phase's end itself no noise is added, and a head that gives the mean of its input
    shows which is which.
    """
    method, data = PhasedConsistency(), Gaussian(TABLE)
    monkeypatch.setattr(PhasedConsistency, "level", lambda self, nets, jumps, batch: jumps.end)
    teacher = net(TABLE, data)
    inner, teacher.network.tap, teacher.network.taps = (
        teacher.network.function,
        nn.Identity(),
        {"tap": 1},
    )
    teacher.network.function = lambda x, t, cond, s: inner(teacher.network.tap(x), t, cond, s)
    nets = method.Nets(net(TABLE, lambda x, t, cond, s: torch.sin(3 * x)), Told(), teacher)
    x0 = samples(256, data)
    jumps = method.jumps(nets, batch_of(x0))
    goal, jump = jumps.goal[:, 0], jumps.jump[:, 0]
    assert (goal - jump).abs().max() > 0.1
    found = method.head_loss(nets, batch_of(x0), CLOCK).terms["discriminator"]
    close(found, (1 - goal).relu() + (1 + jump).relu())
    found = method.loss(nets, batch_of(x0), CLOCK).terms["adversarial"]
    close(found, 0.1 * (1 - jump).relu())


@every("process", PROCESSES)
def test_the_discriminator_sees_samples_noised_from_the_phases_end_to_the_level(process):
    """x - keep·(goal or jump) has the variance sigma_level² - keep² sigma_end², keep =
    alpha_level/alpha_end.
    """
    method, data, seen = PhasedConsistency(), Gaussian(process, 0.3, 0.5), []
    teacher = net(process, data)
    teacher.network.tap, teacher.network.taps = nn.Identity(), {"tap": 1}
    inner = teacher.network.function

    def answer(x, t, cond, s):
        seen.append((x, t, cond))
        return inner(teacher.network.tap(x), t, cond, s)

    teacher.network.function = answer
    nets = method.Nets(net(process, lambda x, *_: torch.sin(3 * x)), Told(), teacher)
    x0 = samples(1024, data, size=16)
    batch = batch_of(x0)
    jumps = method.jumps(nets, batch)
    level, end = method.level(nets, jumps, batch), jumps.end
    keep = process.alpha(level) / process.alpha(end)
    missing = (process.sigma(level) ** 2 - keep**2 * process.sigma(end) ** 2).sqrt()
    above = level > end
    for update, looks in (
        (method.head_loss, (jumps.goal, jumps.jump)),
        (method.loss, (jumps.jump,)),
    ):
        seen.clear()
        batch = batch_of(x0)
        update(nets, batch, CLOCK)
        assert len(seen) == 1 + len(looks)  # the teacher's own step comes first
        for (x, t, cond), sample in zip(seen[1:], looks):
            assert torch.equal(t, level)
            assert cond is batch.cond
            noise = ((x - keep[:, None] * sample) / missing[:, None])[above]
            assert noise.var().item() == pytest.approx(1, abs=4.5 * (2 / noise.numel()) ** 0.5)
            assert noise.mean().item() == pytest.approx(0, abs=4.5 / noise.numel() ** 0.5)
            close(x[~above], sample[~above], rtol=1e-9, atol=1e-9)


def test_without_the_discriminator_the_head_is_left_alone():
    assert [u.trains for u in PhasedConsistency().updates(CLOCK)] == [("head",), ("student",)]
    assert [u.trains for u in PhasedConsistency(**PLAIN).updates(CLOCK)] == [("student",)]
    method = PhasedConsistency(**PLAIN)
    nets, batch = real(method)
    assert list(method.loss(nets, batch(), CLOCK).terms) == ["consistency"]


def test_what_the_students_guidance_means():
    assert PhasedConsistency().student_guidance() == Guidance()
    assert PhasedConsistency(guidance=GuidanceRange(5.0, 6.0)).student_guidance() == Guidance(
        "fixed", 5, 6, 5.5
    )


def test_the_default_grid_of_a_table_is_the_released_one():
    assert torch.equal(PhasedConsistency().times(TABLE, 50), Trailing("t_min")(TABLE, 50))
