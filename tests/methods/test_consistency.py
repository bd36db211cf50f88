"""The consistency methods against closed forms: Gaussian data N(0, 0.5²), where every step of the
teacher is linear.
"""

import math

import pytest
import torch
from tests.diffusion.cases import close
from tests.oracles import Gaussian, batch_of
from tests.stand_ins import Dropping, Exact, ExactFlow, Gains, Kept

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.densities import LogNormal
from fewstep.diffusion.parameterization import SamplePrediction
from fewstep.diffusion.process import VarianceExploding
from fewstep.diffusion.solvers import Euler, Heun
from fewstep.diffusion.times import Karras
from fewstep.learning.consistency import adjacent
from fewstep.learning.losses import Absolute, PseudoHuber, Squared
from fewstep.learning.method import Clock
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.methods.consistency_training import ConsistencyTraining
from fewstep.methods.easy_consistency import EasyConsistency

VE = VarianceExploding()
DATA = Gaussian(VE, std=0.5)
CLOCK = Clock(0, 100, 64)


def samples(n, seed=1):
    return 0.5 * torch.randn(n, 1, generator=torch.Generator().manual_seed(seed)).double()


def step_gains(solver, grid):
    """What one teacher step over each interval multiplies x by."""
    x = torch.ones(1, 1, dtype=torch.float64)
    return torch.stack(
        [solver(DATA, VE, x, t[None], s[None], Cond())[0, 0] for t, s in zip(grid, grid[1:])]
    )


def composed(solver, grid):
    """The optimum of consistency distillation: from each time, all steps that are left."""
    return step_gains(solver, grid).flip(0).cumprod(0).flip(0)


def distillation_nets(method, student):
    return method.Nets(student, student, Exact(VE, DATA))


@pytest.mark.parametrize("solver", [Euler(), Heun()])
@pytest.mark.parametrize("distance", [Squared(), Absolute(), PseudoHuber(0.03)])
def test_the_chain_of_teacher_steps_has_exactly_zero_loss(solver, distance):
    method = ConsistencyDistillation(bins=12, solver=solver, distance=distance)
    grid = method.times(VE, 12)
    best = Gains(VE, grid, composed(solver, grid))
    loss = method.loss(distillation_nets(method, best), batch_of(samples(512)), CLOCK)
    assert loss.terms["consistency"].abs().max() < 1e-12
    best.gains.data[5] *= 1.01
    loss = method.loss(distillation_nets(method, best), batch_of(samples(512)), CLOCK)
    assert loss.terms["consistency"].mean() > 1e-9


@pytest.mark.parametrize(
    "weighting", ["gap", "level_gap", "karras", "snr", "root_snr", "snr_plus_one", "truncated_snr"]
)
def test_a_weight_changes_the_loss_and_not_its_zero(weighting):
    """The official weights, at the time where the interval begins; uniform is 1."""
    plain, weighted = (
        ConsistencyDistillation(bins=12),
        ConsistencyDistillation(bins=12, weighting=weighting),
    )
    grid = plain.times(VE, 12)
    best, other = Gains(VE, grid, composed(Heun(), grid)), Gains(VE, grid)
    loss = weighted.loss(distillation_nets(weighted, best), batch_of(samples(512)), CLOCK)
    assert loss.notes["distance"].max() < 1e-24
    assert loss.terms["consistency"].max() < 1e-18
    pair = [
        m.loss(distillation_nets(m, other), batch_of(samples(512)), CLOCK)
        for m in (plain, weighted)
    ]
    assert torch.equal(pair[0].terms["consistency"], pair[0].notes["distance"])
    assert torch.equal(pair[1].notes["distance"], pair[0].notes["distance"])
    t, s = adjacent(grid, batch_of(samples(512)).draws, VE)
    snr = 1 / t**2
    expected = {
        "gap": 1 / (t - s),
        "level_gap": 1 / (t - s),
        "karras": snr + 4,
        "snr": snr,
        "root_snr": 1 / t,
        "snr_plus_one": snr + 1,
        "truncated_snr": snr.clamp(min=1),
    }[weighting]
    found = pair[1].terms["consistency"] / pair[0].terms["consistency"]
    assert torch.allclose(found, expected, rtol=1e-9)


def test_training_reaches_the_chain_of_teacher_steps():
    """The closed-form optimum, by value: gradient descent on the method's own loss ends at the
    composed gains.
    """
    method = ConsistencyDistillation(bins=6, solver=Euler(), target_decay=0.0)
    grid = method.times(VE, 6)
    student = Gains(VE, grid, torch.full((6,), 0.3, dtype=torch.float64))
    nets = distillation_nets(method, student)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    for step in range(600):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * 0.5 * (1 + math.cos(math.pi * step / 600))
        loss = (
            method.loss(nets, batch_of(samples(256, step), seed=step), CLOCK)
            .terms["consistency"]
            .mean()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.allclose(student.gains, composed(Euler(), grid), atol=2e-3)


def test_the_exact_student_is_stationary_only_for_an_exact_solver():
    exact = Exact(VE, lambda x, t: DATA.flow(x, t, torch.full_like(t, VE.t_min)))
    method = ConsistencyDistillation(solver=ExactFlow(DATA))
    nets = method.Nets(exact, exact, Exact(VE, DATA))
    loss = method.loss(nets, batch_of(samples(512)), CLOCK).terms["consistency"]
    assert loss.abs().max() < 1e-24


def test_the_loss_of_the_exact_student_falls_with_the_fourth_power_of_the_grid():
    """Euler's error per interval is O(1/N²), the loss is its square; the values are those of the
    specification.
    """
    exact = Exact(VE, lambda x, t: DATA.flow(x, t, torch.full_like(t, VE.t_min)))
    found = []
    for points in (20, 40, 80):
        method = ConsistencyDistillation(bins=points - 1, solver=Euler())
        nets = method.Nets(exact, exact, Exact(VE, DATA))
        loss = (
            method.loss(nets, batch_of(samples(200_000)), CLOCK).terms["consistency"].mean().item()
        )
        found.append(loss)
    assert found == pytest.approx([5.62e-5, 3.28e-6, 1.97e-7], rel=0.03)


def slopes(method, nets, x0):
    """Per sample: x_t, the place of t in the student's grid, and the derivative of the loss by the
    gain there.
    """
    calls = []
    handle = nets.student.register_forward_hook(
        lambda module, args, out: calls.append((*args[:2], out))
    )
    losses = method.loss(nets, batch_of(x0), CLOCK).terms["consistency"]
    handle.remove()
    x_t, t, jump = calls[0]
    (slope,) = torch.autograd.grad(losses.sum(), jump)
    return x_t[:, 0], (nets.student.grid[None] - t[:, None]).abs().argmin(1), (slope * x_t)[:, 0]


def by_place(values, place):
    """(mean, standard error) over the samples of each place."""
    parts = [values[place == i] for i in range(int(place.max()) + 1)]
    means, errors = zip(*((part.mean(), part.std() / len(part) ** 0.5) for part in parts))
    return torch.stack(means), torch.stack(errors)


def test_consistency_training_has_the_gradient_of_euler_distillation_in_expectation():
    """E[x_s | x_t] of one sample and one noise is the teacher's Euler step, so for a student linear
    in x and a squared distance the two gradients agree; the losses differ by a floor that no
    student can change.
    """
    process = VarianceExploding(0.1, 80.0)  # at no time is the noise of x_s too small to be seen
    grid = Karras(end="t_min")(process, 8)
    gains = torch.linspace(0.02, 0.9, 8, dtype=torch.float64)
    distil = ConsistencyDistillation(bins=8, solver=Euler())
    train = ConsistencyTraining(
        last=8, curriculum="fixed", density=None, distance=Squared(), weighting="uniform"
    )
    student, teacher = Gains(process, grid, gains), Exact(process, DATA)
    x0 = samples(40_000)
    x_t, place, by_teacher = slopes(distil, distil.Nets(student, student, teacher), x0)
    again, _, by_data = slopes(train, train.Nets(student, None), x0)
    assert torch.equal(x_t, again)
    # The draws are the same: the difference is the noise of x_s about its mean alone.
    difference, error = by_place(by_data - by_teacher, place)
    assert (difference.abs() < 4 * error).all()
    # As a share of what a gain brings, 2 gain x_t², the errors are small enough to tell.
    assert (error / by_place(2 * x_t.square(), place)[0] / gains).max() < 0.02


def test_the_goal_is_the_targets_answer_at_the_lower_end_of_the_teachers_step():
    """Three different networks: jump = 0.5 x_t, goal = 1 + 0.25 x_s, x_s = step gain · x_t of the
    teacher's data.
    """
    method, seen = ConsistencyDistillation(bins=12, solver=Euler()), []
    student = Exact(VE, lambda x, t: seen.append((x, t)) or 0.5 * x)
    target = Exact(VE, lambda x, t: seen.append((x, t)) or 1 + 0.25 * x)
    losses = method.loss(
        method.Nets(student, target, Exact(VE, DATA)), batch_of(samples(200)), CLOCK
    )
    (x_t, t), (x_s, s) = seen
    assert (t > s).all()
    close(x_s, DATA.step_gain(t, s)[:, None] * x_t)
    close(losses.terms["consistency"], (0.5 * x_t - 1 - 0.25 * x_s).square()[:, 0])


@pytest.mark.parametrize("method", [ConsistencyDistillation, EasyConsistency])
def test_both_passes_have_the_same_masks(method):
    method = method(distance=Kept())
    teacher, networks = (
        Exact(VE, DATA),
        [Denoiser(Dropping(), VE, SamplePrediction()) for _ in range(2)],
    )
    networks = networks if isinstance(method, ConsistencyDistillation) else networks[:1]
    method.loss(method.Nets(*networks, teacher), batch_of(torch.randn(200, 20)), CLOCK)
    assert torch.equal(method.distance.jump, method.distance.goal)
    assert 0.4 < (method.distance.jump == 0).float().mean() < 0.6


def test_the_target_and_the_teacher_carry_no_gradient():
    grid = Karras(end="t_min")(VE, 8)
    student, target, teacher = Gains(VE, grid), Gains(VE, grid), Gains(VE, grid)
    method = ConsistencyDistillation(bins=8)
    nets = method.Nets(student, target, teacher)
    method.loss(nets, batch_of(samples(64)), CLOCK).terms["consistency"].sum().backward()
    assert student.gains.grad is not None
    assert target.gains.grad is None
    assert teacher.gains.grad is None


def test_the_curriculum_of_2023():
    """N(k) = N'(k) + 1 of the specification at shares of the run."""
    method = ConsistencyTraining(first=2, last=150, curriculum="progressive")
    steps = 100_000
    points = [
        method.bins(Clock(int(share * steps), steps, 1)) + 1
        for share in (0, 0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 1)
    ]
    assert points == [2, 6, 16, 48, 76, 107, 131, 151]


def test_the_doubling_curriculum():
    method = ConsistencyTraining()
    found = [method.bins(Clock(step, 800, 1)) for step in range(0, 800, 100)]
    assert found == [10, 20, 40, 80, 160, 320, 640, 1280]
    assert method.bins(Clock(799, 800, 1)) == 1280
    with pytest.raises(ValueError, match="more than"):
        ConsistencyTraining(first=20, last=10)


@pytest.mark.parametrize(
    ("stage", "shares"),
    [
        (0, [0, 0, 0, 0.00179, 0.47323, 0.5]),
        (1, [0, 0, 0.21212, 0.50089, 0.73661, 0.75]),
        (2, [0.39998, 0.45749, 0.60606, 0.75045, 0.86831, 0.875]),
        (3, [0.69999, 0.72874, 0.80303, 0.87522, 0.93415, 0.9375]),
        (7, [0.98125, 0.98305, 0.98769, 0.99220, 0.99588, 0.99609]),
    ],
)
def test_the_lower_time_of_easy_consistency(stage, shares):
    """r/t of the published schedule (q = 2, k = 8, b = 1), raised to t_min where it would be
    lower.
    """
    method = EasyConsistency(stages=8)
    t = torch.tensor([0.1, 0.333, 1, 1.95, 5, 80], dtype=torch.float64)
    r = method.lower(VE, t, method.share(Clock(stage * 100, 800, 1)))
    expected = torch.maximum(torch.tensor(shares, dtype=torch.float64) * t, torch.tensor(VE.t_min))
    assert torch.allclose(r, expected, atol=2e-5 * 80, rtol=1e-4)
    assert (r < t).all()


def test_easy_consistency_with_an_exact_step_leaves_the_exact_student_alone():
    exact = Exact(VE, lambda x, t: DATA.flow(x, t, torch.full_like(t, VE.t_min)))
    method = EasyConsistency(solver=ExactFlow(DATA))
    losses = method.loss(method.Nets(exact, Exact(VE, DATA)), batch_of(samples(512)), CLOCK)
    assert losses.notes["distance"].max() < 1e-12


def test_easy_consistency_by_the_data_is_weighted_by_the_gap():
    """With the plain norm the gradient with respect to the student's
    output has length 1/(t - r).
    """
    method = EasyConsistency(density=LogNormal(0.0, 0.5))
    batch = batch_of(samples(256).float())
    seen = {}

    def student(x, t):
        out = (0.5 * x).requires_grad_()
        seen.setdefault("first", (out, t))
        return out

    nets = method.Nets(Exact(VE, student), Exact(VE, DATA))
    method.loss(nets, batch, CLOCK).terms["consistency"].sum().backward()
    out, t = seen["first"]
    gap = t - method.lower(VE, t, method.share(CLOCK))
    assert torch.allclose(
        out.grad.norm(dim=1).double() * gap, torch.ones(len(t), dtype=torch.float64), rtol=1e-4
    )
