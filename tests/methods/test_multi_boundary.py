"""Multi-boundary distillation: at zero loss the student's steps are the teacher's fine steps,
however they are cut.
"""

import dataclasses

import pytest
import torch
from tests.diffusion.cases import close, every, f64, rows
from tests.methods.chains import PROCESSES, TABLE, Chain, descend, samples
from tests.methods.test_latent_consistency import RANGE, STD, batch, guided_mean, teacher
from tests.oracles import Gaussian, batch_of
from tests.stand_ins import GainTable, net
from torch import nn

from fewstep.data.digits import Digits
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.guidance import Guidance, fading, guided
from fewstep.diffusion.parameterization import ConsistencyBoundary, LcmBoundary, SamplePrediction
from fewstep.diffusion.process import VarianceExploding
from fewstep.diffusion.samplers import Ode
from fewstep.diffusion.solvers import Euler
from fewstep.diffusion.times import Auto, Segments, Trailing
from fewstep.learning.consistency import adjacent, at_or_below, compared, jump_to, pair
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.losses import Huber, Squared
from fewstep.learning.method import Clock
from fewstep.methods.latent_consistency import LatentConsistency
from fewstep.methods.multi_boundary import MultiBoundary
from fewstep.methods.phased_consistency import PhasedConsistency
from fewstep.methods.trajectory_consistency import TrajectoryConsistency
from fewstep.models.source import Saved
from fewstep.run import Run

CLOCK = Clock(0, 100, 64)
VE = VarianceExploding()
RELEASED = Trailing("t_min")  # the released grid 999, 979, …, 19, 0


def ends_of(method, process):
    """t -> e, written from the papers' rule: the largest boundary that is not above the next lower
    time of the grid.
    """
    grid, bounds = method.times(process, method.bins).tolist(), method.ends(process).tolist()

    def ends(t):
        places = [
            min(range(len(grid) - 1), key=lambda i, u=u: abs(grid[i] - u)) for u in t.tolist()
        ]
        lower = [grid[i + 1] for i in places]
        return f64(*(max(b for b in bounds if b <= s) for s in lower))

    return ends


def perfect(method, data):
    """(networks at zero loss, the chain)."""
    chain = Chain(data, method.times(data.process, method.bins), ends_of(method, data.process))
    return method.Nets(net(data.process, chain), net(data.process, data)), chain


def loss(method, nets, x0, seed=0):
    return method.loss(nets, batch_of(x0, seed), CLOCK).terms["consistency"]


# The boundaries


@pytest.mark.parametrize(
    ("m", "expected"),
    [
        (1, [0]),
        (2, [0, 499]),
        (3, [0, 339, 679]),
        (4, [0, 259, 519, 779]),
        (5, [0, 199, 399, 599, 799]),
        (6, [0, 179, 359, 539, 719, 899]),
        (8, [0, 139, 279, 419, 559, 699, 839, 979]),
    ],
)
def test_the_released_boundaries(m, expected):
    """The clean end is index 0 on the released grid, and the data itself, index -1, on the default
    one.
    """
    assert MultiBoundary(segments=m, times=RELEASED).ends(TABLE).tolist() == [999, *expected[::-1]]
    assert MultiBoundary(segments=m).ends(TABLE).tolist() == [999, *expected[:0:-1], -1]


def test_segments_are_found_from_where_the_teacher_lands():
    """13, 13, 13 and 11 starting times per segment: a time that is a boundary belongs to the
    segment below it.
    """
    method = MultiBoundary(times=RELEASED)
    grid, bounds = RELEASED(TABLE, 50), method.ends(TABLE)
    ends = at_or_below(bounds, grid[1:])
    assert torch.equal(ends, ends_of(method, TABLE)(grid[:-1]))
    assert {e: int((ends == e).sum()) for e in (0, 259, 519, 779)} == {
        0: 13,
        259: 13,
        519: 13,
        779: 11,
    }
    of = dict(zip(grid[:-1].tolist(), ends.tolist()))
    assert [of[t] for t in (19, 259, 279, 519, 539, 779, 799, 999)] == [
        0,
        0,
        259,
        259,
        519,
        519,
        779,
        779,
    ]


def test_chosen_boundaries_move_to_the_nearest_time_of_the_grid():
    """249 is between two times of the grid; a boundary there would never be landed on by the
    teacher.
    """
    method = MultiBoundary(boundaries=(699.0, 499.0, 246.0))
    assert method.ends(TABLE).tolist() == [999, 699, 499, 239, -1]
    assert method.sampler(CLOCK).steps == 4
    close(
        MultiBoundary(boundaries=(0.8,)).ends(VE)[1],
        Auto()(VE, 50)[(Auto()(VE, 50) - 0.8).abs().argmin()],
    )
    for wrong in ((259.0, 519.0), (519.0, 518.0), (1200.0,)):
        with pytest.raises(ValueError, match="boundaries"):
            MultiBoundary(boundaries=wrong).ends(TABLE)
    with pytest.raises(ValueError, match="51 segments"):
        MultiBoundary(segments=51).ends(VE)


@pytest.mark.parametrize("n", range(1, 51))
def test_every_number_of_segments_has_a_grid(n):
    """Where equal segments of ⌈50/n⌋ intervals are fewer than n, they are even up to one
    interval.
    """
    fine = Auto()(VE, 50)
    grid = Segments()(VE, n)
    assert len(grid) == n + 1
    places = [fine.tolist().index(t) for t in grid.tolist()]
    sizes = [b - a for a, b in zip(places, places[1:])]
    assert sum(sizes) == 50
    size = -(-50 // n)
    assert sizes == [50 - (n - 1) * size] + [size] * (n - 1) or max(sizes) - min(sizes) <= 1


# The optimum


@every("process", PROCESSES)
@pytest.mark.parametrize("m", [1, 2, 4, 8])
def test_at_zero_loss_the_student_samples_what_all_fine_steps_give(process, m):
    """For every number of segments, without a random number behind the first noise."""
    method, data = MultiBoundary(segments=m), Gaussian(process, 0.3, 0.5)
    nets, chain = perfect(method, data)
    assert loss(method, nets, samples(512, data)).abs().max() < 1e-10
    noise, draws = torch.randn(16, 1).double(), Draws(0, range(16))
    made = method.sampler(CLOCK)(nets.student, process, noise, Cond(), draws)
    fine = Ode(50, method.times, Euler())(nets.teacher, process, noise, Cond(), Draws(1, range(16)))
    close(made, fine, rtol=1e-6, atol=1e-7)
    assert draws.count == 0
    chain.down[7:] += 1e-3
    assert loss(method, nets, samples(512, data)).max() > 1e-8


def test_gains_of_the_released_segments():
    """Data N(0, 1) on the released grid, top to bottom, and the whole chain for a spread of 0.5."""
    method = MultiBoundary(times=RELEASED)
    grid, bounds = RELEASED(TABLE, 50), method.ends(TABLE)
    gains = Chain(Gaussian(TABLE, 0.0, 1.0), grid).gain(bounds[:-1], bounds[1:])
    close(gains, f64(0.99901845, 0.99615751, 0.99316433, 0.98434339), rtol=0, atol=1e-8)
    close(gains.prod(), f64(0.9729024)[0], rtol=0, atol=1e-7)
    half = Chain(Gaussian(TABLE, 0.0, 0.5), grid).gain(bounds[:1], bounds[-1:])
    close(half, f64(0.4770347), rtol=0, atol=1e-7)


def test_training_reaches_the_chain():
    """One gain per starting time, from 0.5; the loss at the optimum is zero, so Adam ends there."""
    method, data = MultiBoundary(segments=2, bins=6, distance=Squared()), Gaussian(VE, 0.0, 0.5)
    grid, ends = method.times(VE, 6), ends_of(method, VE)
    student = GainTable(VE, grid, ends)
    nets = method.Nets(student, net(VE, data))
    descend(
        student.parameters(),
        lambda k: loss(method, nets, samples(32, data, k), k).mean(),
        350,
        0.04,
    )
    chain = Chain(data, grid)
    t = grid[:-1]
    found = student.gains[chain.place(t), chain.place(ends(t))].detach()
    close(found, chain.gain(t, ends(t)), rtol=0, atol=5e-4)


def test_without_a_teacher_the_pair_shares_data_and_noise():
    """It is the teacher's first-order step with x0 in the place of its answer."""
    x0, process = samples(64, Gaussian(TABLE)), TABLE
    t, s = rows(519, 64), rows(499, 64)
    x_t, x_s = pair(None, net(process, lambda *_: x0), process, batch_of(x0), t, s)
    same, stepped = pair(Euler(), net(process, lambda *_: x0), process, batch_of(x0), t, s)
    assert torch.equal(x_t, same)
    close(x_s, stepped, rtol=1e-10, atol=1e-12)
    method, data = MultiBoundary(solver=None, distance=Squared()), Gaussian(VE)
    grid = method.times(VE, 50)
    nets, _ = perfect(method, data)
    # The floor that no student can change: (landing gain of x_s)² · std² (alpha_s sigma_t - alpha_t
    # sigma_s)²/spread_t²
    t, s = adjacent(grid, batch_of(samples(100_000, data)).draws, VE)
    end = at_or_below(method.ends(VE), s)
    kept = Chain(data, grid).gain(s, end)
    floor = (kept * data.std * (t - s) / data.spread(t)).square() / (1 + end**2)
    found = loss(method, nets, samples(100_000, data))
    assert found.mean().item() == pytest.approx(floor.mean().item(), rel=0.03)


# Laws


@every("process", PROCESSES)
def test_where_the_teacher_reaches_the_boundary_its_point_is_the_goal(process):
    """Bit by bit, for any answer of the student, also one that is not finite."""
    end = rows(process.t_min, 8)
    x = torch.randn(8, 3).double()
    for time in (process.t_min, process.t_data):
        there = jump_to(net(process, lambda x, t, cond, s: x * torch.nan), process, rows(time, 8))
        assert torch.equal(there(x, rows(time, 8), Cond()), x)
    one = jump_to(net(process, lambda x, t, cond, s: 7 * x), process, end)
    assert torch.equal(one(x, end, Cond()), x)


@every("process", PROCESSES)
def test_one_segment_down_to_t_min_is_latent_consistency(process):
    """The same numbers per sample as LCM's loss of the same network behind the consistency
    boundary.
    """
    data = Gaussian(process, 0.3, 0.5)
    many = MultiBoundary(segments=1, times=Auto("t_min", trailing=True), distance=Squared())
    one = LatentConsistency(guidance=GuidanceRange(), distance=Squared())
    answer = net(process, lambda x, t, cond, s: torch.tanh(x) + t[:, None] / process.t_max)
    teacher, x0 = net(process, data), samples(256, data, size=4)
    mine = loss(many, many.Nets(answer, teacher), x0)
    student = net(process, answer.network.function)
    student.parameterization = ConsistencyBoundary(SamplePrediction())
    end = f64(process.t_min)
    unit = process.alpha(end) ** 2 + process.sigma(end) ** 2  # samples are compared at unit scale
    close(mine * unit, loss(one, one.Nets(student, student, teacher), x0), rtol=1e-9, atol=1e-14)


def test_the_released_switch_is_nearly_the_exact_one():
    """LCM's 10 t instead of infinity: 2e-4 of the loss at the lowest indices, for a student whose
    jumps end at x0.
    """
    data = Gaussian(TABLE, 0.3, 0.5)
    answer = net(TABLE, lambda x, t, cond, s: torch.tanh(x) + t[:, None] / 1000)
    released = net(TABLE, answer.network.function)
    released.parameterization = LcmBoundary(SamplePrediction())
    exact = net(TABLE, lambda x, t, cond, s: torch.where(t[:, None] == 0, x, answer(x, t, cond)))
    one, x0 = (
        LatentConsistency(guidance=GuidanceRange(), distance=Squared()),
        samples(2048, data, size=4),
    )
    theirs, mine = (loss(one, one.Nets(f, f, net(TABLE, data)), x0) for f in (released, exact))
    assert 1e-8 < ((theirs - mine).abs() / mine).max() < 5e-3
    assert (theirs / mine - 1).abs().median() < 1e-6


def test_the_gradient_is_that_of_regression_on_a_fixed_goal():
    method, data = MultiBoundary(distance=Squared()), Gaussian(TABLE)
    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    nets = method.Nets(net(TABLE, lambda x, t, cond, s: w * x), net(TABLE, data))
    x0 = samples(64, data)
    loss(method, nets, x0).mean().backward()
    batch = batch_of(x0)
    t, s = adjacent(method.times(TABLE, 50), batch.draws, TABLE)
    batch.draws.uniform()  # the guidance scale
    end = at_or_below(method.ends(TABLE), s)
    x_t, x_s = pair(Euler(), nets.teacher, TABLE, batch, t, s)
    again = w.detach().clone().requires_grad_()
    goal = jump_to(nets.student, TABLE, end)(x_s, s, Cond()).detach()
    jump = jump_to(net(TABLE, lambda x, t, cond, s: again * x), TABLE, end)(x_t, t, Cond())
    Squared()(jump, goal).mean().backward()
    close(w.grad, again.grad)


def test_a_loss_is_the_same_in_every_process():
    """Samples are compared at unit scale: the variance exploding twin of a table gives the table's
    loss.
    """
    data = Gaussian(TABLE)
    x0, grid = samples(256, data), Trailing("t_min")(TABLE, 50)
    levels = torch.tan(TABLE.angle(grid))
    ve = VarianceExploding(t_min=levels[-1].item(), t_max=levels[0].item())
    found = []
    for process, times in ((TABLE, grid), (ve, levels)):
        t, s, end = times[20].expand(256), times[21].expand(256), times[24].expand(256)
        x_t, x_s = pair(Euler(), net(process, Gaussian(process)), process, batch_of(x0), t, s)

        def answer(x, t, cond, s, p=process):
            return 0.4 * x / torch.hypot(p.alpha(t), p.sigma(t))[:, None]

        carried = jump_to(net(process, answer), process, end)
        found.append(
            compared(Huber(), process, carried(x_t, t, Cond()), carried(x_s, s, Cond()), end)
        )
    close(*found, rtol=1e-9)


# Guidance and options

# The methods whose losses share this one's guidance; each student here is told its end.
GUIDED = {
    "multi_boundary": MultiBoundary(guidance=RANGE),
    "phased": PhasedConsistency(guidance=RANGE, adversarial=0.0),
    "trajectory": TrajectoryConsistency(guidance=RANGE, told_end=True),
}


def guided_loss(method, process, answer, rows):
    student = net(process, answer, ("guidance", "s"))
    known = {
        "student": student,
        "target": student,
        "head": nn.Identity(),
        "teacher": teacher(process),
    }
    nets = method.Nets(
        **{field.name: known[field.name] for field in dataclasses.fields(method.Nets)}
    )
    return method.loss(nets, batch(rows), CLOCK).terms["consistency"]


@every("method", GUIDED)
@every("process", PROCESSES)
def test_the_chain_of_guided_steps_has_zero_loss_for_every_scale(method, process):
    grid = method.times(process, method.bins)

    def answer(x_t, t, cond, s):
        mean = guided_mean(cond["guidance"].view(-1, 1))
        return Chain(Gaussian(process, mean, STD), grid)(x_t, t, cond, s)

    assert guided_loss(method, process, answer, 512).max() < 1e-10
    assert guided_loss(method, process, lambda *a: answer(*a) + 0.1, 512).max() > 1e-6


@every("method", GUIDED)
def test_the_student_is_told_the_scale_of_its_row(method):
    """low + (high - low) u, in both looks; u is the draw behind the interval."""
    told = []
    guided_loss(
        method, VE, lambda x, t, cond, s: told.append((cond["guidance"], cond["label"])) or x, 4096
    )
    draws = batch(4096).draws
    adjacent(method.times(VE, method.bins), draws, VE)
    scale = 1 + 4 * draws.uniform()
    assert len(told) == 2
    for guidance, label in told:
        close(guidance, scale)
        assert label.eq(1).all()
    assert scale.min() < 1.01
    assert scale.max() > 4.99


def test_what_the_students_guidance_means():
    assert MultiBoundary().student_guidance() == Guidance()
    assert MultiBoundary(guidance=GuidanceRange(8.0, 8.0)).student_guidance() == Guidance(
        "fixed", 8, 8, 8
    )
    assert MultiBoundary(
        guidance=GuidanceRange(1.0, 20.0, embed=True)
    ).student_guidance() == Guidance("input", 1, 20, 10.5)
    with pytest.raises(ValueError, match="solver"):
        MultiBoundary(solver=None, guidance=GuidanceRange(2.0, 2.0))


def test_dynamic_guidance_of_a_student():
    """Is saved with it; one that does not read its scale has none."""
    scales = GuidanceRange(1.0, 9.0, embed=True)
    method = MultiBoundary(guidance=scales, fading=(700.0, 800.0))
    assert method.student_guidance() == Guidance("input", 1, 9, 5, (700.0, 800.0))
    unread = Run(Digits(limit=8), MultiBoundary(fading=(1.0, 2.0)), Saved("digits_teacher"))
    with pytest.raises(ValueError, match="fading needs a student that reads its scale"):
        unread.prepared()
    with pytest.raises(ValueError, match="got 800, 700"):
        MultiBoundary(guidance=scales, fading=(800.0, 700.0))


def test_dynamic_guidance():
    """Full up to 0.7 of the table, none from 0.8 on; the switch keeps its own time."""
    ramp = fading(9.0, full=700.0, none=800.0)
    close(ramp(f64(0, 700, 725, 750, 800, 999)), f64(9, 9, 7, 5, 1, 1))
    assert fading(9.0, 700.0, 700.0)(f64(19, 700, 701)).tolist() == [9, 9, 1]
    assert fading(9.0, TABLE.t_max, TABLE.t_max)(f64(0, 500, 999)).tolist() == [9, 9, 9]
    assert fading(9.0, -2.0, -2.0)(f64(-1, 500, 999)).tolist() == [1, 1, 1]
    seen = []
    told = net(
        TABLE, lambda x, t, cond, s: seen.append(cond["guidance"][0].item()) or x, ("guidance",)
    )
    switched = guided(told, fading(8.0, 700.0, 700.0))
    MultiBoundary().sampler(CLOCK)(switched, TABLE, torch.randn(2, 1), Cond(), Draws(0, (0, 1)))
    assert seen == [1, 1, 8, 8]
