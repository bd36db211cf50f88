"""Progressive distillation against closed forms: for Gaussian data every step of a teacher or
student is affine.
"""

import pytest
import torch
from tests.diffusion.cases import PARAMETERIZATIONS, PROCESSES, SOLVERS, close, every, narrowed
from tests.oracles import Gaussian, batch_of
from tests.stand_ins import Kept, Output, denoising, net
from torch import nn

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.parameterization import Edm, SamplePrediction
from fewstep.diffusion.process import (
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
)
from fewstep.diffusion.samplers import Ode
from fewstep.diffusion.solvers import Euler
from fewstep.diffusion.times import Auto, Linspace, Uniform
from fewstep.diffusion.types import per_sample
from fewstep.learning.batch import Batch
from fewstep.learning.method import Clock
from fewstep.methods.progressive import Progressive

CLOCK = Clock(0, 100, 64)
MEAN, STD = 0.3, 0.5
# Grids on which every second, third … time of the finer one is a time of the coarser.
NESTED = {
    "auto": Auto(end="t_min"),
    "uniform": Uniform(),
    "uniform to t_min": Uniform("t_min"),
    "even": Linspace(),
}


def samples(n, pixels=4, seed=1):
    return MEAN + STD * torch.randn(
        n, pixels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


class Look:
    """One call of the loss on N(MEAN, STD²), and everything that it saw."""

    def __init__(self, process, teacher, rows=64, phase=0, student=None, batch=None, **options):
        method = Progressive(distance=Kept(), **options)
        seen = {}

        def student_of(x, t):
            seen["x_t"], seen["t"] = x, t
            return (student or teacher)(x, t)

        nets = method.Nets(denoising(process, student_of), denoising(process, teacher))
        self.batch = batch_of(samples(rows)) if batch is None else batch
        self.losses = method.loss(nets, self.batch, Clock(0, 100, 64, phase))
        self.x_t, self.t, self.goal, self.method = (
            seen["x_t"],
            seen["t"],
            method.distance.goal,
            method,
        )
        n = method.rounds()[phase]
        self.coarse, fine = method.times(process, n), method.times(process, n * method.factor)
        place = (fine[None] - self.t[:, None]).abs().argmin(1)
        self.times = [
            fine[place + k] for k in range(method.factor + 1)
        ]  # t, the teacher's later times, s


# The goal


@every("process", PROCESSES)
@every("times", NESTED)
@pytest.mark.parametrize("factor", [2, 3])
def test_one_step_with_the_goal_lands_where_the_teachers_steps_land(process, times, factor):
    """The landing point from the closed form: deviations from alpha·mean are multiplied by each
    step's gain.
    """
    data = Gaussian(process, MEAN, STD)
    look = Look(process, data, start=4 * factor, end=4, factor=factor, times=times)
    gain = torch.stack([data.step_gain(t, s) for t, s in zip(look.times, look.times[1:])]).prod(0)
    t, s = look.times[0], look.times[-1]
    alpha_t, alpha_s = (per_sample(process.alpha(u), look.x_t) for u in (t, s))
    expected = alpha_s * MEAN + per_sample(gain, look.x_t) * (look.x_t - alpha_t * MEAN)
    close(process.step(look.x_t, look.goal, t, s), expected, rtol=1e-11, atol=1e-11)


@every("solver", SOLVERS)
def test_any_solver_may_be_the_teachers(solver):
    """The goal knows only where the teacher's steps begin and end. A solver that remembers begins
    anew each time.
    """
    process = VarianceExploding()
    data = Gaussian(process, MEAN, STD)
    look = Look(process, data, start=12, end=4, factor=3, solver=solver)
    x = look.x_t
    for t, s in zip(look.times, look.times[1:]):
        x = solver(data, process, x, t, s, Cond())
    close(
        process.step(look.x_t, look.goal, look.times[0], look.times[-1]), x, rtol=1e-11, atol=1e-11
    )


@every("process", PROCESSES)
@every("times", NESTED)
def test_a_teacher_that_knows_the_image_gives_the_image(process, times):
    x0 = samples(64)
    look = Look(process, lambda x, t: x0, start=8, end=2, times=times, batch=batch_of(x0))
    close(look.goal, x0, rtol=0, atol=1e-10)


@every("process", PROCESSES)
@pytest.mark.parametrize("factor", [2, 3])
def test_the_last_goal_is_the_teachers_last_look_where_the_grid_ends_at_the_data(process, factor):
    """The official code's special case is no special case: the formula gives the same."""
    data = Gaussian(process, MEAN, STD)
    seen = []
    teacher = lambda x, t: seen.append(data(x, t)) or seen[-1]  # noqa: E731
    look = Look(
        process, teacher, start=2 * factor, end=2, factor=factor, times=Uniform(), student=data
    )
    last = look.times[-1] == process.t_data
    assert 0 < last.sum() < 64
    assert len(seen) == factor
    close(look.goal[last], seen[-1][last], rtol=1e-12, atol=1e-12)


@every("process", PROCESSES)
@pytest.mark.parametrize("phase", [0, 1, 2])
def test_the_times_are_all_those_of_the_students_sampler(process, phase):
    """Every start of the round's own grid, none else; where the loss looks is where the sampler
    will.
    """
    look = Look(process, Gaussian(process, MEAN, STD), rows=400, phase=phase, start=32, end=4)
    sampler = look.method.sampler(Clock(0, 1, 1, phase))
    starts = sampler.times(process, sampler.steps)[:-1]
    assert len(starts) == [16, 8, 4][phase]
    found = torch.unique(look.t).flip(0)
    close(found, starts, rtol=1e-12, atol=1e-12)
    share = torch.tensor([(look.t - s).abs().lt(1e-9).sum() for s in found]) / 400
    assert (share - 1 / len(starts)).abs().max() < 0.08  # four standard errors of an even choice


def test_the_noised_image_is_the_batchs_own():
    process, x0 = VarianceExploding(), samples(32)
    look = Look(process, Gaussian(process, MEAN, STD), batch=batch_of(x0, seed=5))
    noise = (look.x_t - x0) / look.t[:, None]
    again = Draws(5, range(32))
    again.integers(1)
    close(noise, again.normal(4), rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [32, 1024])
def test_in_single_precision_the_goal_keeps_four_digits_at_any_number_of_steps(steps):
    """x~ is a quotient of differences: the rounding of x_t, of the size of sigma, is divided by the
    step's length.
    """
    process = VarianceExploding()
    data = Gaussian(process, MEAN, STD)
    x0 = samples(256, pixels=16)
    exact, rounded = (
        Look(process, data, batch=batch_of(x), start=steps, end=steps // 2)
        for x in (x0, x0.float())
    )
    assert rounded.goal.dtype == torch.float32
    assert (exact.goal - rounded.goal.double()).square().mean().sqrt() < 1e-4 * STD


# The optimum


class Affine(nn.Module):
    """x0 = gain(t)·x + shift(t), with numbers of their own at each time of a grid; begins as those
    of `data`.
    """

    def __init__(self, grid, data):
        super().__init__()
        self.grid = grid[:-1]
        nothing = torch.zeros(len(self.grid), 1, dtype=torch.float64)
        shift = data(nothing, self.grid)[:, 0]
        self.gain, self.shift = (
            nn.Parameter(data(nothing + 1, self.grid)[:, 0] - shift),
            nn.Parameter(shift),
        )

    def place(self, t):
        return (self.grid - t[:, None]).abs().argmin(1)

    def forward(self, x, t, cond, s=None):
        self.seen, place = (x, t), self.place(t)
        return per_sample(self.gain[place], x) * x + per_sample(self.shift[place], x)


def affine_nets(method, process, data):
    """Student and teacher, and their networks."""
    networks = [Affine(method.times(process, method.start), data) for _ in range(2)]
    return method.Nets(
        *(Denoiser(network, process, SamplePrediction()) for network in networks)
    ), *networks


@every("process", PROCESSES)
@pytest.mark.parametrize(
    ("start", "factor", "times"),
    [(16, 2, Auto(end="t_min")), (16, 2, Uniform()), (9, 3, Uniform())],
)
def test_the_chain_of_optima_is_the_first_teachers_fine_grid(process, start, factor, times):
    """Each round's loss reaches 0 at the affine map through (x_t, x~), and at the end one step
    equals all `start`.
    """
    method = Progressive(start=start, end=1, factor=factor, times=times, distance=Kept())
    data = Gaussian(process, MEAN, STD)
    nets, student, teacher = affine_nets(method, process, data)
    noise = torch.randn(8, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = Ode(start, times, Euler())(data, process, noise, Cond(), Draws(0, range(8)))
    for phase, n in enumerate(method.rounds()):
        clock = Clock(0, 100, 64, phase, 9, 10)
        method.loss(nets, batch_of(samples(48 * n)), clock)
        (x_t, t), goal = student.seen, method.distance.goal
        for place in student.place(t).unique():
            at = student.place(t) == place
            x, y = x_t[at].flatten(), goal[at].flatten()
            gain = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
            student.gain.data[place], student.shift.data[place] = gain, y.mean() - gain * x.mean()
        assert (
            method.loss(nets, batch_of(samples(48 * n, seed=2)), clock).notes["distance"].max()
            < 1e-18
        )
        made = method.sampler(clock)(nets.student, process, noise, Cond(), Draws(0, range(8)))
        close(made, expected, rtol=1e-9, atol=1e-10)  # every round, not only the last
        assert not torch.equal(student.gain, teacher.gain)
        method.after_step(nets, clock)
        assert torch.equal(student.gain, teacher.gain)
    assert n == 1


class Evenly(Draws):
    """Draws whose integers walk through all values in turn."""

    def integers(self, high, *shape):
        super().integers(high, *shape)
        return torch.arange(len(self.rows)) % high


@pytest.mark.parametrize(
    "process", [VariancePreserving(), RectifiedFlow()], ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize("weighting", ["truncated_snr", "uniform"])
def test_the_loss_of_a_student_that_is_its_teacher_falls_with_the_square_of_the_steps(
    process, weighting
):
    """Invariant 3 of the specification: x~ - x^ is of first order in the step."""
    data, found = Gaussian(process, MEAN, STD), []
    for n in (64, 128, 256):
        batch = Batch(Cond(), Evenly(0, range(256)), (1024,), samples(256, 1024))
        options = {"start": 2 * n, "end": n, "times": Uniform("t_min"), "weighting": weighting}
        look = Look(process, data, batch=batch, **options)
        found.append(n**2 * look.losses.terms["progressive"].mean().item())
    assert found == pytest.approx([found[-1]] * 3, rel=0.03)


@pytest.mark.parametrize("factor", [2, 4])
def test_two_processes_that_meet_agree(factor):
    """VE and VP on grids of equal angles: the same goals and, by equal SNR, the same loss
    (invariant 5).
    """
    vp = VariancePreserving().within(VarianceExploding())
    ve = VarianceExploding().within(vp)

    def student(x, t):
        return torch.tanh(0.7 * x + 0.1 * torch.log(t)[:, None].to(x))

    def teacher(x, t):
        return torch.tanh(1.3 * x - 0.2 * torch.log(t)[:, None].to(x))

    goals, losses = [], []
    for process in (ve, vp):
        method = Progressive(
            start=8, end=8 // factor, factor=factor, times=Uniform("t_min"), distance=Kept()
        )
        nets = method.Nets(
            *(
                Denoiser(Output(f), VarianceExploding(), Edm()).under(process)
                for f in (student, teacher)
            )
        )
        assert nets.student.process == process
        losses.append(method.loss(nets, batch_of(samples(256)), CLOCK).terms["progressive"])
        goals.append(method.distance.goal)
    assert goals[0].std() > 0.1
    close(goals[1], goals[0], rtol=1e-9, atol=1e-9)
    close(losses[1], losses[0], rtol=1e-8)


def test_the_goal_carries_no_gradient():
    """With one network in both places the gradient is that of the student's side alone."""
    process = VarianceExploding()
    method = Progressive(distance=Kept())
    nets, student, _ = affine_nets(method, process, Gaussian(process, MEAN, STD))
    places = []  # of the student's own pass: the teacher's come before it
    handle = student.register_forward_hook(
        lambda module, inputs, output: places.append(module.place(inputs[1]))
    )
    losses = method.loss(method.Nets(nets.student, nets.student), batch_of(samples(64)), CLOCK)
    handle.remove()
    losses.terms["progressive"].sum().backward()
    assert len(places) == 3
    assert not method.distance.goal.requires_grad
    error = 2 * (method.distance.jump - method.distance.goal).detach().mean(1)
    weight = torch.clamp(student.grid[places[-1]] ** -2, min=1)
    expected = torch.zeros_like(student.shift).index_add(0, places[-1], error * weight)
    close(student.shift.grad, expected, rtol=1e-9, atol=1e-12)


def test_the_weight_is_of_the_time_where_the_step_begins():
    """max(SNR, 1) as published; the note is the distance without it."""
    process = VarianceExploding()
    look = Look(process, Gaussian(process, MEAN, STD), student=lambda x, t: 0.5 * x)
    distance = (0.5 * look.x_t - look.goal).square().mean(1)
    close(look.losses.notes["distance"], distance)
    close(look.losses.terms["progressive"], distance * torch.clamp(1 / look.t**2, min=1))
    assert look.t.min() < 0.5  # rows on both sides of SNR 1
    assert look.t.max() > 2


@every("process", PROCESSES)
@every("parameterization", PARAMETERIZATIONS)
def test_the_loss_by_value_for_every_prediction(process, parameterization):
    """Weighted by its output, a student that says F = 0 is off by F~ = (x~ - skip x_t)/out."""
    process = narrowed(process)  # epsilon is undefined in pure noise
    data, seen = Gaussian(process, MEAN, STD), {}

    def of_teacher(inside, t):
        c = parameterization(process, t)
        x = inside / c.inp[:, None]
        return (data(x, t) - c.skip[:, None] * x) / c.out[:, None]

    def of_student(inside, t):
        seen["t"], seen["x_t"] = t, inside / parameterization(process, t).inp[:, None]
        return 0 * inside

    method = Progressive(start=8, end=4, times=Uniform("t_min"), weighting="output")
    nets = method.Nets(
        *(Denoiser(Output(f), process, parameterization) for f in (of_student, of_teacher))
    )
    losses = method.loss(nets, batch_of(samples(64)), CLOCK)
    t, x_t, fine = seen["t"], seen["x_t"], method.times(process, 8)
    place = (fine - t[:, None]).abs().argmin(1)
    middle, s = fine[place + 1], fine[place + 2]
    gain = data.step_gain(t, middle) * data.step_gain(middle, s)
    alpha_t, alpha_s = process.alpha(t)[:, None], process.alpha(s)[:, None]
    goal = process.x0_between(x_t, alpha_s * MEAN + gain[:, None] * (x_t - alpha_t * MEAN), t, s)
    c = parameterization(process, t)
    off = goal - c.skip[:, None] * x_t
    close(losses.notes["distance"], off.square().mean(1), rtol=1e-6, atol=1e-12)
    close(
        losses.terms["progressive"], (off / c.out[:, None]).square().mean(1), rtol=1e-6, atol=1e-12
    )


def test_when_and_with_which_condition_the_networks_are_asked():
    """The teacher at the two times of its steps, the student at the first, both with the labels of
    the batch.
    """
    process, method, asked = VarianceExploding(), Progressive(start=8, end=4), {}

    def recording(name):
        asked[name] = []
        return net(
            process,
            lambda x, t, cond, s: asked[name].append((t, cond["label"])) or 0.5 * x,
            ("label",),
        )

    labels, fine = torch.arange(1, 65), method.times(process, 8)
    cond = Cond({"label": labels}, {"label": 0 * labels})
    method.loss(
        method.Nets(recording("student"), recording("teacher")),
        batch_of(samples(64), cond=cond),
        CLOCK,
    )
    (first, second), (student,) = asked["teacher"], asked["student"]
    assert all(torch.equal(label, labels) for _, label in (first, second, student))
    place = (fine - student[0][:, None]).abs().argmin(1)
    assert set(place.tolist()) == {0, 2, 4, 6}
    assert torch.equal(first[0], student[0])
    assert torch.equal(second[0], fine[place + 1])


def test_a_round_of_the_exact_data_teacher_is_stationary():
    """A student that answers with the image has loss 0 against a teacher that does."""
    process, x0 = RectifiedFlow(), samples(32)
    look = Look(process, lambda x, t: x0, batch=batch_of(x0), student=lambda x, t: x0)
    assert look.losses.terms["progressive"].max() < 1e-20
