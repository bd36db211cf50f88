"""Samplers: evaluations, marginals and ends, with exact denoisers and exact flow maps in the place
of networks.
"""

import math

import pytest
import torch
from tests.diffusion.cases import (
    PROCESSES,
    SAMPLERS,
    SOLVERS,
    Watched,
    close,
    every,
    f64,
    inner_times,
    narrowed,
    rows,
)
from tests.oracles import FiniteData, Gaussian

from fewstep.choice import replaced
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.process import VarianceExploding
from fewstep.diffusion.samplers import FlowMap, Ode, Renoise, renoised
from fewstep.diffusion.solvers import Euler, Heun
from fewstep.diffusion.times import Explicit, Karras, Uniform

VE = VarianceExploding()
PAIRS = {f"{s}-{p}": (SAMPLERS[s], PROCESSES[p]) for s in SAMPLERS for p in PROCESSES}
# Every sampler once more with what makes it random.
STOCHASTIC = SAMPLERS | {"ode": Ode(churn=10.0), "flow_map": FlowMap(gamma=0.5)}
MEAN, STD = 0.3, 0.5
ROWS, WIDTH = 512, 128


def start(process):
    """Noise whose prior is exactly the marginal of N(MEAN, STD²) at t_max, so that only the sampler
    is measured.
    """
    t = f64(process.t_max)
    wanted = process.alpha(t) * MEAN + Gaussian(process, MEAN, STD).spread(t) * Draws(
        1, range(ROWS)
    ).normal(WIDTH)
    return wanted / process.prior(torch.ones(1, 1, dtype=torch.float64))


def check_marginal(x, process, t):
    """Mean and standard deviation of all elements, to four standard errors."""
    t, n = f64(t), x.numel()
    mean, spread = (process.alpha(t) * MEAN).item(), Gaussian(process, MEAN, STD).spread(t).item()
    assert x.mean().item() == pytest.approx(mean, abs=4 * spread / math.sqrt(n))
    assert x.std().item() == pytest.approx(spread, rel=4 / math.sqrt(2 * n))


def jump_to(process, end):
    """The exact consistency function of the Gaussian: from any time to `end`."""
    oracle = Gaussian(process, MEAN, STD)
    return lambda x, t, cond, s=None: oracle.flow(x, t, rows(end, len(t)))


def jump(process):
    """The exact flow map of the Gaussian, said as an x0: `Process.step` then lands on the flow."""
    oracle = Gaussian(process, MEAN, STD)
    return lambda x, t, cond, s: process.x0_between(x, oracle.flow(x, t, s), t, s)


# Evaluations


@every("pair", PAIRS)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_evaluations_are_counted_calls(pair, n):
    sampler, process = pair[0].with_steps(n), narrowed(pair[1])
    watched = Watched(Gaussian(process))
    sampler(watched, process, torch.randn(2, 3, dtype=torch.float64), Cond(), Draws(0, range(2)))
    assert watched.calls == sampler.evaluations
    assert sampler.steps == n
    assert replaced(sampler, steps=pair[0].steps) == pair[0]


@every("solver", SOLVERS)
@pytest.mark.parametrize("end", ["t_min", "t_data"])
@pytest.mark.parametrize("n", [1, 4])
def test_evaluations_of_every_solver(solver, end, n):
    sampler, watched = Ode(steps=n, times=Karras(end=end), solver=solver), Watched(Gaussian(VE))
    sampler(watched, VE, torch.randn(2, 3), Cond(), Draws(0, range(2)))
    assert (
        watched.calls
        == sampler.evaluations
        == n * solver.calls - (end == "t_data") * (solver.calls - 1)
    )


@every("solver", SOLVERS)
@every("process", PROCESSES)
def test_a_step_from_pure_noise_costs_one_call(solver, process):
    sampler, watched = Ode(steps=4, times=Uniform(), solver=solver), Watched(Gaussian(process))
    sampler(watched, process, torch.randn(2, 3), Cond(), Draws(0, range(2)))
    pure_noise = process.alpha(f64(process.t_max)).item() < 1e-12
    assert watched.calls == sampler.evaluations - pure_noise * (solver.calls - 1)


def test_evaluations_in_numbers():
    assert Ode(steps=18).evaluations == 35  # EDM on CIFAR-10
    assert Ode(steps=40).evaluations == 79
    assert Ode(steps=18, solver=Euler()).evaluations == 18
    assert Renoise(steps=4).evaluations == FlowMap(steps=4).evaluations == 4


# Laws of every sampler


@every("sampler", STOCHASTIC)
@every("process", PROCESSES)
def test_samples_do_not_depend_on_the_batch(sampler, process):
    process, sampler = narrowed(process), sampler.with_steps(3)
    noise = Draws(1, range(20)).normal(2).double()
    oracle = Gaussian(process, MEAN, STD)
    x = sampler(oracle, process, noise, Cond(), Draws(2, range(20)))
    close(
        sampler(oracle, process, noise[5:9], Cond(), Draws(2, range(5, 9))),
        x[5:9],
        rtol=1e-9,
        atol=1e-12,
    )
    again = sampler(oracle, process, noise, Cond(), Draws(2, range(20)))
    assert torch.equal(again, x)


@every("sampler", STOCHASTIC)
def test_stochastic_samplers_depend_on_their_draws(sampler):
    noise = torch.randn(4, 2)
    samples = [
        sampler.with_steps(3)(Gaussian(VE), VE, noise, Cond(), Draws(s, range(4))) for s in (0, 1)
    ]
    assert not torch.equal(*samples)


@every("sampler", SAMPLERS)
def test_one_step_asks_no_draws_and_starts_from_the_prior(sampler):
    draws, watched = Draws(0, range(3)), Watched(lambda x_t, t, cond, s=None: x_t)
    sampler.with_steps(1)(watched, VE, torch.randn(3, 2), Cond(), draws)
    assert draws.count == 0
    assert watched.times[0] == 80.0


@every("pair", PAIRS)
def test_float32_noise_gives_float32_samples(pair):
    sampler, process = pair[0].with_steps(2), narrowed(pair[1])
    x = sampler(Gaussian(process), process, torch.randn(2, 3), Cond(), Draws(0, range(2)))
    assert x.dtype == torch.float32


# Ode


def gain_error(sampler, process, end):
    """How far a sampler's linear map of the deviation from the mean is from the exact one,
    relatively.
    """
    noise = torch.randn(2, 3, dtype=torch.float64)
    centre = process.alpha(f64(end)) * MEAN
    exact = jump_to(process, end)(process.prior(noise), rows(process.t_max, 2), Cond()) - centre
    x = sampler(Gaussian(process, MEAN, STD), process, noise, Cond(), Draws(0, range(2))) - centre
    return (x / exact - 1).abs().max().item()


@every("process", PROCESSES)
def test_many_steps_are_the_exact_flow(process):
    process = narrowed(process)
    assert (
        gain_error(Ode(steps=80, times=Karras(end="t_min")), process, process.t_min) < 2.5e-3
    )  # 6.4e-4 at 149 steps, second order


@every("process", PROCESSES)
def test_eighteen_steps_come_close(process):
    """From pure noise too, where the grid must not be one in sigma/alpha."""
    pure_noise = process.alpha(f64(process.t_max)).item() < 1e-12
    times = Uniform() if pure_noise else Karras()
    process = process if pure_noise else narrowed(process)
    assert (
        gain_error(Ode(times=times), process, process.t_data) < 0.0554
    )  # 1.0553 is published for EDM


@every("process", PROCESSES)
def test_samples_of_finite_data_are_data(process):
    process = narrowed(process)
    points = f64(-1.0, 1.0)[:, None]
    noise = torch.randn(32, 1, dtype=torch.float64)
    noise = torch.cat([noise, -noise])
    x = Ode(steps=20)(FiniteData(process, points), process, noise, Cond(), Draws(0, range(64)))
    assert (x.abs() - 1).abs().max() < 1e-6
    assert torch.equal(x[:32].sign(), -x[32:].sign())
    assert torch.equal(x.sign(), noise.sign())  # in one dimension a flow keeps the order


def test_finite_data_in_more_dimensions():
    points = torch.randn(7, 2, 3, dtype=torch.float64)
    noise = torch.randn(50, 2, 3, dtype=torch.float64)
    x = Ode(steps=30)(FiniteData(VE, points), VE, noise, Cond(), Draws(0, range(50)))
    distance = torch.cdist(x.flatten(1), points.flatten(1)).min(1)
    assert distance.values.max() < 1e-5
    assert len(set(distance.indices.tolist())) >= 5


# Churn


@every("solver", SOLVERS)
def test_without_churn_nothing_is_drawn(solver):
    draws, noise = Draws(0, range(4)), torch.randn(4, 2)
    x = Ode(steps=5, solver=solver)(Gaussian(VE), VE, noise, Cond(), draws)
    assert draws.count == 0
    assert torch.equal(
        x, Ode(steps=5, solver=solver)(Gaussian(VE), VE, noise, Cond(), Draws(9, range(4)))
    )


@pytest.mark.parametrize(
    ("churn", "gamma"),
    [(1.0, 0.1), (4.0, 0.4), (5.0, math.sqrt(2) - 1), (1000.0, math.sqrt(2) - 1)],
)
def test_churn_raises_the_level_by_a_bounded_factor(churn, gamma):
    sampler = Ode(steps=10, solver=Euler(), churn=churn)
    watched, draws = Watched(Gaussian(VE)), Draws(0, range(2))
    sampler(watched, VE, torch.randn(2, 3), Cond(), draws)
    close(f64(*watched.times), (1 + gamma) * Karras()(VE, 10)[:-1], rtol=1e-10)
    assert draws.count == 10


def test_churn_keeps_to_its_range():
    sampler = Ode(steps=10, solver=Euler(), churn=4.0, churn_min=0.05, churn_max=50.0)
    watched = Watched(Gaussian(VE))
    sampler(watched, VE, torch.randn(2, 3), Cond(), Draws(0, range(2)))
    grid = Karras()(VE, 10)[:-1]
    inside = (grid >= 0.05) & (grid <= 50)
    assert 0 < inside.sum() < 10
    close(f64(*watched.times), torch.where(inside, 1.4 * grid, grid), rtol=1e-10)


def test_churn_adds_the_missing_noise_times_its_factor():
    seen = []
    sampler = Ode(steps=10, solver=Euler(), churn=2.0, churn_noise=1.003)
    noise = torch.randn(4, 3)
    sampler(
        lambda x_t, t, cond, s=None: seen.append(x_t) or x_t, VE, noise, Cond(), Draws(3, range(4))
    )
    fresh = Draws(3, range(4)).normal(3)
    close(seen[0], 80 * noise + 80 * math.sqrt(1.2**2 - 1) * 1.003 * fresh, rtol=1e-5, atol=1e-3)


@every("process", PROCESSES)
@pytest.mark.parametrize("whole", [False, True], ids=["narrowed", "whole"])
def test_churn_keeps_the_marginals_where_the_steps_are_exact(process, whole):
    process = process if whole else narrowed(process)
    sampler = Ode(steps=4, times=Uniform(end="t_min"), solver=Euler(), churn=100.0)
    targets = iter(sampler.times(process, 4)[1:])
    exact = jump(process)
    x = sampler(
        lambda x, t, cond, s=None: exact(x, t, cond, rows(next(targets), len(t))),
        process,
        start(process),
        Cond(),
        Draws(2, range(ROWS)),
    )
    check_marginal(x, process, process.t_min)


def test_churn_with_a_real_solver_keeps_the_marginal():
    noise = start(VE)[:, :32]
    x = Ode(steps=60, times=Karras(end="t_min"), solver=Heun(), churn=15.0)(
        Gaussian(VE, MEAN, STD), VE, noise, Cond(), Draws(2, range(ROWS))
    )
    # One percent beside the statistics: the error of 60 Heun steps.
    assert x.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert x.std().item() == pytest.approx(STD, rel=0.03)


# Renoise


@every("process", PROCESSES)
def test_renoising_keeps_the_variance_exactly(process):
    t = inner_times(process)
    s = torch.cat([f64(process.t_data), t[:-1]])
    oracle = Gaussian(process, MEAN, STD)
    one, nothing = (
        torch.ones(len(t), 1, dtype=torch.float64),
        torch.zeros(len(t), 1, dtype=torch.float64),
    )
    keep, missing = renoised(process, one, nothing, s, t), renoised(process, nothing, one, s, t)
    close(
        (keep[:, 0] * oracle.spread(s)) ** 2 + missing[:, 0] ** 2, oracle.spread(t) ** 2, rtol=1e-10
    )
    close(keep[:, 0] * process.alpha(s), process.alpha(t), rtol=1e-10)
    assert torch.equal(renoised(process, one, 5 * one, t, t), one)


@every("process", PROCESSES)
@pytest.mark.parametrize("end", ["t_min", "t_data"])
@pytest.mark.parametrize("n", [1, 3])
def test_multistep_consistency_sampling_keeps_the_marginals(process, end, n):
    sampler = Renoise(steps=n, times=Uniform(end=end))
    draws, last = Draws(2, range(ROWS)), getattr(process, end)
    x = sampler(jump_to(process, last), process, start(process), Cond(), draws)
    check_marginal(x, process, last)
    assert draws.count == n - 1


@pytest.mark.parametrize(
    ("end", "added"), [("t_min", math.sqrt(0.8**2 - 0.002**2)), ("t_data", 0.8)]
)
def test_the_noise_between_two_jumps(end, added):
    # Samples at t_min get √(t² - t_min²), clean samples get t.
    noise, fresh, seen = torch.randn(4, 3, dtype=torch.float64), Draws(3, range(4)).normal(3), []
    sampler, x0 = (
        Renoise(steps=2, times=Explicit(between=((0.8,),), end=end)),
        torch.full_like(noise, 0.25),
    )
    sampler(
        lambda x_t, t, cond, s=None: seen.append(x_t) or x0, VE, noise, Cond(), Draws(3, range(4))
    )
    close(seen[0], 80 * noise)
    close(seen[1], 0.25 + added * fresh, rtol=1e-6)


def test_one_jump_from_the_plain_prior():
    # From N(0, T²) instead of N(mean, std² + T²): mean·(1 - g) and g·T, g the gain of the exact
    # jump.
    oracle, noise = Gaussian(VE, MEAN, STD), torch.randn(5, 3, dtype=torch.float64)
    g = math.sqrt((STD**2 + 0.002**2) / (STD**2 + 80**2))
    x = Renoise(steps=1)(jump_to(VE, VE.t_min), VE, noise, Cond(), Draws(0, range(5)))
    close(x, MEAN * (1 - g) + g * 80 * noise)
    assert oracle.spread(f64(0.0)).item() == STD


# FlowMap


@every("process", PROCESSES)
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("end", ["t_min", "t_data"])
def test_flow_map_sampling_keeps_the_marginals_for_any_gamma(process, gamma, end):
    sampler, draws = FlowMap(steps=3, times=Uniform(end=end), gamma=gamma), Draws(2, range(ROWS))
    x = sampler(jump(process), process, start(process), Cond(), draws)
    check_marginal(x, process, getattr(process, end))
    assert draws.count == (2 if gamma else 0)


@every("process", PROCESSES)
@pytest.mark.parametrize("n", [1, 4])
def test_flow_map_sampling_with_exact_jumps_is_the_exact_flow(process, n):
    noise = torch.randn(4, 3, dtype=torch.float64)
    x = FlowMap(steps=n, times=Uniform())(jump(process), process, noise, Cond(), Draws(0, range(4)))
    exact = Gaussian(process, MEAN, STD).flow(
        process.prior(noise), rows(process.t_max, 4), rows(process.t_data, 4)
    )
    close(x, exact, rtol=1e-9, atol=1e-9)
    assert torch.equal(
        x,
        FlowMap(steps=n, times=Uniform())(
            jump(process), process, noise, Cond(), Draws(1, range(4))
        ),
    )


@every("process", PROCESSES)
def test_gamma_one_is_multistep_consistency_sampling(process):
    noise = torch.randn(4, 3, dtype=torch.float64)
    one = FlowMap(steps=3, times=Uniform(), gamma=1.0)(
        jump(process), process, noise, Cond(), Draws(2, range(4))
    )
    end = jump_to(process, process.t_data)
    other = Renoise(steps=3, times=Uniform())(end, process, noise, Cond(), Draws(2, range(4)))
    close(one, other, rtol=1e-9, atol=1e-9)


def test_gamma_lands_at_a_shortened_level():
    targets = []

    def recording(x, t, cond, s):
        targets.append(s[0].item())
        return x

    sampler = FlowMap(steps=3, gamma=0.6)
    sampler(recording, VE, torch.randn(2, 3), Cond(), Draws(0, range(2)))
    grid = Karras()(VE, 3)
    close(f64(*targets), torch.cat([0.8 * grid[1:3], grid[3:]]), rtol=1e-10)


@pytest.mark.parametrize("sampler", [Ode(), Renoise(), FlowMap()], ids=lambda s: type(s).__name__)
def test_steps_have_a_limit_before_their_times_take_memory(sampler):
    for steps in (100_001, 10**12, 10**30):
        with pytest.raises(ValueError, match=r"steps are too many: at most 100,000"):
            sampler.with_steps(steps).grid(VarianceExploding())
