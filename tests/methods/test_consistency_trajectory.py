"""Consistency trajectory models: the map from any time to any earlier one, compared where both have
come to its end.
"""

import pytest
import torch
from tests.diffusion.cases import close, every, rows
from tests.methods.chains import PROCESSES, Chain, descend, samples
from tests.oracles import Gaussian, batch_of
from tests.stand_ins import ExactFlow, GainTable, net

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.process import VarianceExploding
from fewstep.diffusion.solvers import Euler, Heun
from fewstep.learning.consistency import adjacent, jump_to, one_between, pair
from fewstep.learning.losses import Squared
from fewstep.learning.method import Clock
from fewstep.methods.consistency_trajectory import ConsistencyTrajectory
from fewstep.methods.diffusion import Diffusion

CLOCK = Clock(0, 100, 64)
VE = VarianceExploding()
PLAIN = {"denoising": 0.0}


def exact(data):
    """The inner network g* whose step from t to s is the flow map."""
    process = data.process
    return net(process, lambda x, t, cond, s: process.x0_between(x, data.flow(x, t, s), t, s))


def loss(method, nets, x0, seed=0, term="trajectory"):
    return method.loss(nets, batch_of(x0, seed), CLOCK).terms[term]


@every("process", PROCESSES)
def test_the_exact_map_is_stationary_under_an_exact_teacher(process):
    data = Gaussian(process, 0.3, 0.5)
    method = ConsistencyTrajectory(solver=ExactFlow(data), **PLAIN)
    student = exact(data)
    for seed in range(4):
        nets = method.Nets(student, student, net(process, data))
        assert loss(method, nets, samples(256, data), seed).abs().max() < 1e-15
    off = method.Nets(
        net(process, lambda x, t, cond, s: student(x, t, cond, s) + 0.01),
        student,
        net(process, data),
    )
    assert loss(method, off, samples(256, data)).mean() > 1e-7


@every("process", PROCESSES)
def test_the_chain_has_zero_loss_under_euler_steps(process):
    """Several teacher steps at once are parts of the same chain."""
    data = Gaussian(process, 0.3, 0.5)
    method = ConsistencyTrajectory(solver=Euler(), longest=6, **PLAIN)
    student = net(process, Chain(data, method.times(process, 18)))
    for seed in range(4):
        nets = method.Nets(student, student, net(process, data))
        assert loss(method, nets, samples(256, data), seed).abs().max() < 1e-15


@every("process", PROCESSES)
def test_the_inner_network_between_its_limits(process):
    """G(G(x, t, u), u, s) = G(x, t, s), G(x, t, t) = x, and g tends to the denoiser as s goes
    to t.
    """
    data = Gaussian(process, 0.3, 0.5)
    g, x = exact(data), torch.randn(8, 2).double()
    t, u, s = (
        rows(process.t_min + share * (process.t_max - process.t_min), 8)
        for share in (0.9, 0.5, 0.2)
    )
    two = jump_to(g, process, s)(jump_to(g, process, u)(x, t, Cond()), u, Cond())
    close(two, jump_to(g, process, s)(x, t, Cond()), rtol=1e-9, atol=1e-12)
    assert torch.equal(jump_to(g, process, t)(x, t, Cond()), x)
    near = [(g(x, t, Cond(), t * (1 - h)) - data(x, t)).abs().max().item() for h in (1e-2, 1e-3)]
    assert near[1] < 0.12 * near[0]
    if process == VE:  # the closed form of the specification
        gain = ((data.spread(s) / data.spread(t) - s / t) / (1 - s / t))[:, None]
        close(g(x, t, Cond(), s), 0.3 + gain * (x - 0.3), rtol=1e-9)


def test_training_reaches_the_chain():
    """Gains for all pairs of times of two intervals; the outer map is the student of the step
    before.

    A gradient that reaches the student through the target's map is scaled by that map's gain, so
    rows are weighted differently, but each row vanishes at the same optimum, where the loss is
    zero.
    """
    data = Gaussian(VE, 0.0, 0.5)
    method = ConsistencyTrajectory(bins=2, longest=2, solver=Euler(), **PLAIN)
    grid = method.times(VE, 2)
    student, target = GainTable(VE, grid, start=0.3), GainTable(VE, grid, start=0.3)
    target.requires_grad_(False)
    nets = method.Nets(student, target, net(VE, data))

    def step(k):
        target.load_state_dict(student.state_dict())
        return loss(method, nets, samples(32, data, k), k).mean()

    descend(student.parameters(), step, 250, 0.04)
    i, j = torch.triu_indices(3, 3, 1)
    close(student.gains[i, j].detach(), Chain(data, grid).gain(grid[i], grid[j]), rtol=0, atol=5e-4)


def test_with_the_end_for_s_it_is_the_consistency_loss():
    """Those rows compare the student's jump to t_min with its jump from the teacher's point; the
    outer map is idle.
    """
    data, method = Gaussian(VE, 0.3, 0.5), ConsistencyTrajectory(longest=1, **PLAIN)
    student = net(VE, lambda x, t, cond, s: torch.tanh(x) + 0.1 * torch.log(t)[:, None])
    nets = method.Nets(student, net(VE, lambda x, *_: x * torch.nan), net(VE, data))
    x0 = samples(2048, data)
    found, batch = loss(method, nets, x0), batch_of(x0)
    grid = method.times(VE, 18)
    batch.draws.choice(1)
    t, u = adjacent(grid, batch.draws, VE)
    x_t, x_u = pair(Heun(), nets.teacher, VE, batch, t, u)
    end = grid[-1].expand(len(t))
    last = one_between(grid, end, u, batch.draws) == end
    assert 100 < last.sum() < 1000
    jump = jump_to(student, VE, end)
    close(found[last], Squared()(jump(x_t, t, Cond()), jump(x_u, u, Cond()))[last], rtol=1e-12)
    assert found[~last].isnan().all()


def test_both_sides_are_carried_to_the_end_by_the_slow_copy():
    """With answers a of the student and b of the target a jump is x' = a + s/t (x - a), and then b
    + end/s (x' - b).
    """
    data, method = Gaussian(VE, 0.3, 0.5), ConsistencyTrajectory(longest=1, solver=Euler(), **PLAIN)
    nets = method.Nets(
        net(VE, lambda x, *_: torch.tanh(x)), net(VE, lambda x, *_: 0.3 * x + 0.1), net(VE, data)
    )
    x0 = samples(512, data)
    found, batch, grid = loss(method, nets, x0), batch_of(x0), method.times(VE, 18)
    batch.draws.choice(1)
    t, u = adjacent(grid, batch.draws, VE)
    x_t = x0 + t[:, None] * batch.noise()
    x_u = 0.3 + data.step_gain(t, u)[:, None] * (x_t - 0.3)
    s, end = one_between(grid, grid[-1].expand(512), u, batch.draws)[:, None], grid[-1]
    t, u = t[:, None], u[:, None]
    jump = torch.tanh(x_t) + s / t * (x_t - torch.tanh(x_t))
    goal = torch.where(s == u, x_u, torch.tanh(x_u) + s / u * (x_u - torch.tanh(x_u)))
    jump, goal = (
        torch.where(s == end, x, (0.3 * x + 0.1) * (1 - end / s) + end / s * x)
        for x in (jump, goal)
    )
    close(found, (jump - goal).square()[:, 0], rtol=1e-9, atol=1e-14)
    assert (s > end).sum() > 300


@every("process", PROCESSES)
def test_the_sampler_asks_at_times_of_the_training_grid(process):
    """And gamma shortens the level of a landing by √(1 - gamma²), but the last."""
    method = ConsistencyTrajectory(gamma=0.6)
    sampler, fine = method.sampler(CLOCK), method.times(process, 18)
    assert sampler.steps == 2
    for n, places in ((2, [0, 9, 18]), (4, [0, 4, 9, 13, 18])):
        assert torch.equal(sampler.times(process, n), fine[places])
    seen = []
    denoise = net(process, lambda x, t, cond, s: seen.append((t[:1], s[:1])) or x)
    sampler(denoise, process, torch.randn(2, 1).double(), Cond(), Draws(0, range(2)))
    (top, land), (middle, end) = seen
    assert (top, middle, end) == (process.t_max, fine[9], fine[18])
    close(torch.tan(process.angle(land)), 0.8 * torch.tan(process.angle(middle)), rtol=1e-9)


def test_longer_ways_are_taken_in_proportion_to_their_length(monkeypatch):
    """k of 1 … 4 teacher steps with probability k/10, one number for all rows of a batch."""
    method, calls = ConsistencyTrajectory(solver=Euler(), **PLAIN), []
    teacher = net(VE, lambda x, *_: calls.append(1) or x)
    idle, found = net(VE, lambda x, *_: x), []
    for one in range(10):
        calls.clear()
        monkeypatch.setattr(
            Draws, "choice", lambda self, high, one=one: one if high == 10 else None
        )
        loss(method, method.Nets(idle, idle, teacher), torch.ones(1, 1).double())
        found.append(len(calls))
    assert found == [1, 2, 2, 3, 3, 3, 4, 4, 4, 4]
    with pytest.raises(ValueError, match="longest"):
        ConsistencyTrajectory(bins=3, longest=4)


def test_the_gradient_goes_through_the_target_and_into_the_student_alone():
    weights = [torch.tensor(0.9, dtype=torch.float64, requires_grad=i == 0) for i in range(3)]
    nets = [net(VE, lambda x, t, cond, s, w=w: w * x) for w in weights]
    method, x0 = ConsistencyTrajectory(**PLAIN), samples(64, Gaussian(VE))
    loss(method, method.Nets(*nets), x0).mean().backward()
    assert weights[0].grad != 0
    h, values = 1e-6, []
    goal = weights[0].detach().clone()
    for sign in (1, -1):
        # The slope by differences, the goal's student held fixed: what the stop-gradient means.
        first = [goal + sign * h, goal]
        nets[0] = net(
            VE,
            lambda x, t, cond, s, first=first: (
                (first[0] if torch.is_grad_enabled() else first[1]) * x
            ),
        )
        values.append(loss(method, method.Nets(*nets), x0).mean().item())
    assert weights[0].grad.item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5)


def test_the_denoising_term_is_that_of_a_teachers_training():
    """g(x, t, t) and the weight 1/out²: with its draws, the loss of
    `Diffusion`, times its share.
    """
    data, seen = Gaussian(VE), []

    def answer(x, t, cond, s):
        seen.append((t, s))
        return 0.3 * x

    student, x0 = net(VE, answer), samples(200_000, data)
    method = ConsistencyTrajectory(denoising=2.0)
    found = loss(method, method.Nets(student, student, net(VE, data)), x0, term="denoising")
    assert torch.equal(*seen[-1])
    theirs = Diffusion(label_dropout=0.0)
    other = theirs.loss(theirs.Nets(net(VE, lambda x, *_: 0.3 * x)), batch_of(x0), CLOCK).terms[
        "denoising"
    ]
    # Other draws of the same law; the error grows as t², so medians are compared.
    assert found.median().item() == pytest.approx(2 * other.median().item(), rel=0.03)
