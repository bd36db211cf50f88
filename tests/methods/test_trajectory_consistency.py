"""Trajectory consistency: jumps to any time of the grid, and sampling that lands deeper and comes
back up.
"""

import pytest
import torch
from tests.diffusion.cases import close, every, f64, rows
from tests.methods.chains import PROCESSES, TABLE, Chain, descend, samples
from tests.oracles import Gaussian, batch_of
from tests.stand_ins import GainTable, net

from fewstep.contracts.trial import teacher
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.process import VarianceExploding
from fewstep.diffusion.samplers import FlowMap
from fewstep.diffusion.times import Auto
from fewstep.learning.consistency import adjacent, one_between
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.losses import Squared
from fewstep.learning.method import Clock
from fewstep.methods.multi_boundary import MultiBoundary
from fewstep.methods.trajectory_consistency import TrajectoryConsistency
from fewstep.models.adapters import FullCopy

CLOCK = Clock(0, 100, 64)
VE = VarianceExploding()


def loss(method, nets, x0, seed=0):
    return method.loss(nets, batch_of(x0, seed), CLOCK).terms["consistency"]


def drawn(method, process, x0, seed=0):
    """(t, s, e) of that loss, by the same draws."""
    batch, grid = batch_of(x0, seed), method.times(process, method.bins)
    t, s = adjacent(grid, batch.draws, process)
    batch.draws.uniform()  # the guidance scale
    batch.noise()
    return t, s, one_between(grid, grid[-1].expand(len(s)), s, batch.draws)


@every("process", PROCESSES)
def test_a_student_that_is_told_its_end_has_zero_loss_at_the_chain(process):
    method, data = TrajectoryConsistency(told_end=True), Gaussian(process, 0.3, 0.5)
    chain = Chain(data, method.times(process, 50))
    student = net(process, chain)
    nets = method.Nets(student, student, net(process, data))
    assert loss(method, nets, samples(1024, data)).abs().max() < 1e-10
    chain.down[20:] += 1e-3
    assert loss(method, nets, samples(1024, data)).max() > 1e-7


def test_training_reaches_the_chain_for_every_pair_of_times():
    """Six gains of a grid of three intervals, of which those over one interval are the teacher's
    steps themselves.
    """
    method, data = (
        TrajectoryConsistency(bins=3, distance=Squared(), target_decay=0.0),
        Gaussian(VE, 0.0, 0.5),
    )
    grid = method.times(VE, 3)
    student = GainTable(VE, grid)
    nets = method.Nets(student, student, net(VE, data))
    descend(
        student.parameters(),
        lambda k: loss(method, nets, samples(64, data, k), k).mean(),
        350,
        0.04,
    )
    i, j = torch.triu_indices(4, 4, 1)
    close(student.gains[i, j].detach(), Chain(data, grid).gain(grid[i], grid[j]), rtol=0, atol=5e-4)


def test_one_answer_cannot_serve_all_ends():
    """The noise that lands on the exact flow map of N(0, 1), over x: it depends on the end, hence
    `told_end`.
    """
    data = Gaussian(TABLE, 0.0, 1.0)
    t, s = f64(999, 999, 779, 259), f64(0, 779, 259, 0)
    x = torch.ones(4, 1, dtype=torch.float64)
    x0 = TABLE.x0_between(x, data.flow(x, t, s), t, s)
    noise = (x - TABLE.alpha(t)[:, None] * x0) / TABLE.sigma(t)[:, None]
    close(noise[:, 0], f64(0.935752, 0.992761, 0.896666, 0.335326), rtol=0, atol=1e-6)
    method = TrajectoryConsistency()
    chain = Chain(
        Gaussian(TABLE, 0.0, 0.5), method.times(TABLE, 50), ends=lambda t: torch.full_like(t, 0.0)
    )
    one = net(TABLE, chain)
    nets = method.Nets(one, one, net(TABLE, Gaussian(TABLE, 0.0, 0.5)))
    x0 = samples(1024, Gaussian(TABLE))
    found, (_, _, end) = loss(method, nets, x0), drawn(method, TABLE, x0)
    assert found[end == 0].abs().max() < 1e-12
    assert found[end > 0].mean() > 1e-3


def test_ends_are_drawn_evenly_from_the_grids_end_up_to_the_teachers_point():
    method, x0 = TrajectoryConsistency(bins=5), samples(50_000, Gaussian(VE))
    grid = method.times(VE, 5)
    t, s, end = drawn(method, VE, x0)
    for i in range(5):
        for j in range(i + 1, 6):
            share = ((t == grid[i]) & (end == grid[j])).double().mean().item()
            expected = 1 / 5 / (5 - i)
            assert share == pytest.approx(expected, abs=4.5 * (expected / 50_000) ** 0.5)
    assert (end <= s).all()


@every("process", PROCESSES)
def test_where_the_end_is_that_of_the_grid_it_is_latent_consistency(process):
    """Those rows have, bit by bit, the loss of one segment, which is LCM's (see there)."""
    data = Gaussian(process, 0.3, 0.5)
    mine, theirs = (
        TrajectoryConsistency(),
        MultiBoundary(segments=1, times=Auto("t_min", trailing=True)),
    )
    student, teacher, x0 = (
        net(process, lambda x, t, cond, s: torch.tanh(x)),
        net(process, data),
        samples(2048, data),
    )
    found = loss(mine, mine.Nets(student, student, teacher), x0)
    _, s, end = drawn(mine, process, x0)
    last = end == process.t_min
    assert 50 < last.sum() < 500
    assert torch.equal(found[last], loss(theirs, theirs.Nets(student, teacher), x0)[last])
    # Where the end is the teacher's own point, that is the goal, whatever the target network says.
    other = mine.Nets(student, net(process, lambda x, t, cond, s: x * torch.nan), teacher)
    assert torch.equal(found[end == s], loss(mine, other, x0)[end == s])


def test_the_goal_carries_no_gradient():
    weights = [torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(3)]
    nets = [net(VE, lambda x, t, cond, s, w=w: w * x) for w in weights]
    method = TrajectoryConsistency()
    loss(method, method.Nets(*nets), samples(64, Gaussian(VE))).sum().backward()
    assert weights[0].grad != 0
    assert weights[1].grad is None
    assert weights[2].grad is None


def test_the_goal_is_the_slow_copys_jump():
    """Answers a, b of student and target: d( a + e/t (x_t - a), b + e/s (x_s - b) ) at unit
    scale.
    """
    data, method = Gaussian(VE, 0.3, 0.5), TrajectoryConsistency(distance=Squared())
    nets = method.Nets(
        net(VE, lambda x, *_: torch.tanh(x)), net(VE, lambda x, *_: 0.3 * x + 0.1), net(VE, data)
    )
    x0 = samples(512, data)
    found, batch = loss(method, nets, x0), batch_of(x0)
    batch.draws.integers(1)
    batch.draws.uniform()
    t, s, end = drawn(method, VE, x0)
    x_t = x0 + t[:, None] * batch.noise()
    x_s = 0.3 + data.step_gain(t, s)[:, None] * (x_t - 0.3)
    t, s, end = (u[:, None] for u in (t, s, end))
    a, b = torch.tanh(x_t), 0.3 * x_s + 0.1
    goal = torch.where(end == s, x_s, b + end / s * (x_s - b))
    expected = (a + end / t * (x_t - a) - goal).square() / (1 + end**2)
    close(found, expected[:, 0], rtol=1e-9, atol=1e-14)
    assert (end < s).sum() > 400


def test_inputs_of_the_networks():
    model = teacher(VarianceExploding())
    for options, inputs in (
        ({}, ("label",)),
        ({"told_end": True}, ("label", "s")),
        (
            {"told_end": True, "guidance": GuidanceRange(1.0, 3.0, embed=True)},
            ("label", "guidance", "s"),
        ),
    ):
        nets = TrajectoryConsistency(**options).build_nets(model, FullCopy().clones(model.denoiser))
        assert nets.student.inputs == nets.target.inputs == inputs
    assert TrajectoryConsistency(guidance=GuidanceRange(3.0, 15.0)).student_guidance() == Guidance(
        "fixed", 3, 15, 9
    )


# Strategic stochastic sampling


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [(0.0, [759, 499, 259, 0]), (0.3, [531, 349, 181, 0]), (1.0, [0, 0, 0, 0])],
)
def test_where_the_jumps_land(gamma, expected):
    """⌊(1 - gamma) p⌋ for the times p that follow 999, and the end itself without noise."""
    sampler, seen = TrajectoryConsistency(gamma=gamma).sampler(CLOCK), []

    def answer(x, t, cond, s):
        seen.append((t[0].item(), s[0].item()))
        return x

    sampler(net(TABLE, answer), TABLE, torch.randn(2, 1), Cond(), Draws(0, range(2)))
    assert [t for t, _ in seen] == [999, 759, 499, 259]
    assert [s for _, s in seen] == expected


@pytest.mark.parametrize("shortens", ["level", "time"])
@every("process", PROCESSES)
def test_no_jump_lands_below_the_grids_end(process, shortens):
    sampler, seen = FlowMap(3, Auto("t_min"), 1.0, shortens), []
    denoise = net(process, lambda x, t, cond, s: seen.append(s) or x)
    sampler(denoise, process, torch.randn(2, 1), Cond(), Draws(0, (0, 1)))
    assert all(torch.equal(s, rows(process.t_min, 2)) for s in seen)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@every("process", PROCESSES)
def test_the_sampler_keeps_the_marginals(process, gamma):
    """From the exact marginal at t_max the exact jumps give N(alpha mean, spread²) at the grid's
    end, for any gamma.
    """
    data, n = Gaussian(process, 0.3, 0.5), 40_000
    exact = net(process, lambda x, t, cond, s: process.x0_between(x, data.flow(x, t, s), t, s))
    top, low = rows(process.t_max, n), rows(process.t_min, n)
    x_top = (
        process.alpha(top)[:, None] * 0.3 + data.spread(top)[:, None] * torch.randn(n, 1).double()
    )
    noise = x_top / process.prior(torch.ones(1, 1)).double()
    draws = Draws(0, range(n))
    x = TrajectoryConsistency(gamma=gamma).sampler(CLOCK)(exact, process, noise, Cond(), draws)
    spread = data.spread(low)[0].item()
    assert x.std().item() == pytest.approx(spread, rel=4 / (2 * n) ** 0.5)
    assert x.mean().item() == pytest.approx(
        0.3 * process.alpha(low)[0].item(), abs=4 * spread / n**0.5
    )
    assert draws.count == (3 if gamma else 0)
