"""Solvers: measured orders, closed forms, laws."""

import math

import pytest
import torch
from tests.diffusion.cases import (
    PROCESSES,
    SOLVERS,
    Watched,
    close,
    constant,
    every,
    f64,
    inner_times,
    narrowed,
    rows,
    trajectory,
)
from tests.oracles import FiniteData, Gaussian

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.process import RectifiedFlow, VarianceExploding, VariancePreservingTable
from fewstep.diffusion.solvers import Dpmpp2m, Euler, Heun, Midpoint
from fewstep.diffusion.times import Karras, Uniform

VE, TABLE = VarianceExploding(), VariancePreservingTable()
POINTS = f64(-1.0, 0.2, 1.0)[:, None]
PAIRS = {f"{s}-{p}": (SOLVERS[s], PROCESSES[p]) for s in SOLVERS for p in PROCESSES}


# Orders


@every("pair", PAIRS)
def test_the_measured_order_is_the_declared_one(pair):
    """Three points are no linear problem; along the exact flow the probability below x does not
    change.
    """
    solver, process = pair

    def below(x, t):
        z = (x - process.alpha(t) * POINTS[:, 0]) / process.sigma(t)
        return (0.5 * (1 + torch.erf(z / math.sqrt(2)))).mean(1)

    def error(n):
        grid = process.time_of(torch.linspace(1.3, 0.5, n + 1, dtype=torch.float64))
        x = f64(0.7, -0.3)[:, None] * process.sigma(grid[0:1])
        end = trajectory(solver, FiniteData(process, POINTS), process, x, grid)[-1]
        return (below(end, grid[-1:]) - below(x, grid[:1])).abs().max().item()

    assert abs(math.log2(error(32) / error(64)) - solver.order) < 0.12


@every("pair", PAIRS)
def test_the_whole_way_on_gaussian_data_has_at_least_the_declared_order(pair):
    # At least: the leading error of the midpoint rule happens to vanish on this equation, which
    # makes it third order.
    solver, process = pair[0], narrowed(pair[1])
    oracle = Gaussian(process, mean=0.3)
    exact = None

    def error(n):
        nonlocal exact
        grid = Karras(end="t_min")(process, n)
        x = f64(1.0, -0.5)[None] * process.sigma(grid[:1])
        exact = oracle.flow(x, grid[:1], grid[-1:])
        return (trajectory(solver, oracle, process, x, grid)[-1] - exact).abs().max().item()

    errors = error(20), error(40)
    assert math.log2(errors[0] / errors[1]) > solver.order - 0.1
    assert errors[1] < (0.05 if solver.order == 1 else 7e-3) * exact.abs().max()


@pytest.mark.parametrize(
    ("solver", "steps", "ratios", "times"),
    [
        (Heun(), (20, 40, 80), (4.5, 4.2), Karras()),
        (Euler(), (20, 40, 80), (1.98, 1.99), Karras()),
        (Dpmpp2m(), (40, 80, 160), (4.2, 4.1), Karras(end="t_min")),
    ],
    ids=["heun", "euler", "dpmpp_2m"],
)
def test_published_error_ratios(solver, steps, ratios, times):
    oracle = Gaussian(VE)
    errors = []
    for n in steps:
        grid, x = times(VE, n), f64(80.0)[None]
        exact = oracle.flow(x, grid[:1], grid[-1:])
        errors.append((trajectory(solver, oracle, VE, x, grid)[-1] / exact - 1).abs().item())
    for (a, b), ratio in zip(zip(errors, errors[1:]), ratios, strict=True):
        assert a / b == pytest.approx(ratio, abs=0.06 if ratio > 2 else 0.006)


@pytest.mark.parametrize(
    ("points", "ratio"), [(11, 1.1746), (18, 1.0553), (40, 1.0098), (150, 1.00064)]
)
def test_heun_on_karras_grids_against_the_exact_gain(points, ratio):
    oracle, grid, x = Gaussian(VE), Karras(end="t_min")(VE, points - 1), f64(1.0)[None]
    gain = trajectory(Heun(), oracle, VE, x, grid)[-1] / oracle.flow(x, grid[:1], grid[-1:])
    assert gain.item() == pytest.approx(ratio, abs=6e-5 if points < 100 else 6e-6)


# Closed forms


@every("process", PROCESSES)
def test_euler_is_one_step_towards_the_denoised_sample(process):
    t = inner_times(process)
    s = torch.cat([f64(process.t_data), t[:-1]])
    x = torch.randn(len(t), 3, dtype=torch.float64)
    oracle = Gaussian(process, mean=0.3)
    close(Euler()(oracle, process, x, t, s, Cond()), process.step(x, oracle(x, t), t, s))


@pytest.mark.parametrize(("t", "s"), [(80.0, 40.0), (2.0, 1.2), (0.1, 0.002)])
def test_heun_in_the_form_of_edm(t, s):
    # d = (x - D)/t; x_e = x + (s - t) d; d' = (x_e - D)/s; x_s = x + (s - t)(d + d')/2, here for
    # N(0, 0.5²).
    y = torch.randn(1, 3, dtype=torch.float64)
    y_e = y * (0.25 + t * s) / (0.25 + t**2)
    expected = y + 0.5 * (s - t) * (y * t / (0.25 + t**2) + y_e * s / (0.25 + s**2))
    close(Heun()(Gaussian(VE), VE, y, f64(t), f64(s), Cond()), expected, rtol=1e-11)


def test_midpoint_in_sigma():
    t, s, oracle = 2.0, 1.2, FiniteData(VE, POINTS)
    x = torch.randn(4, 1, dtype=torch.float64)
    x_m = x + (1.6 - t) * (x - oracle(x, rows(t, 4))) / t
    expected = x + (s - t) * (x_m - oracle(x_m, rows(1.6, 4))) / 1.6
    close(Midpoint()(oracle, VE, x, rows(t, 4), rows(s, 4), Cond()), expected, rtol=1e-11)


def test_dpmpp_2m_in_the_form_of_k_diffusion():
    # x' = (s/t) x - expm1(-h) ((1 + 1/2r) x0 - (1/2r) x0_before), r = h_before/h, h = ln(t/s).
    before, t, s = 5.0, 2.0, 1.2
    x, x0, x0_before = torch.randn(3, 1, 3, dtype=torch.float64)
    h, r = math.log(t / s), math.log(before / t) / math.log(t / s)
    expected = s / t * x - math.expm1(-h) * ((1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_before)
    history = [(f64(before), x0_before)]
    close(Dpmpp2m()(constant(x0), VE, x, f64(t), f64(s), Cond(), history), expected)
    assert len(history) == 2
    assert history[-1][0].item() == t
    assert torch.equal(history[-1][1], x0)


@every("process", PROCESSES)
def test_dpmpp_2m_with_a_constant_history_is_euler(process):
    t = inner_times(process)[1:-1]
    before, s = inner_times(process)[2:], inner_times(process)[:-2]
    x, x0 = torch.randn(2, len(t), 3, dtype=torch.float64)
    euler = Euler()(constant(x0), process, x, t, s, Cond())
    close(Dpmpp2m()(constant(x0), process, x, t, s, Cond(), [(before, x0)]), euler)
    close(Dpmpp2m()(constant(x0), process, x, t, s, Cond(), []), euler)
    close(Dpmpp2m()(constant(x0), process, x, t, s, Cond()), euler)


# Laws of every solver


@every("pair", PAIRS)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_constant_denoiser_is_where_every_solver_ends(pair, n):
    solver, process = pair
    x0, noise = torch.randn(2, 4, 3)
    grid = Uniform()(process, n)
    points = trajectory(solver, constant(x0), process, noise, grid)
    close(points[-1], x0, rtol=0)
    # All the way the points lie between the noise and x0: x = alpha x0 + (sigma/sigma_T)(x_T -
    # alpha_T x0).
    start = noise - process.alpha(grid[0:1]) * x0
    for t, x in zip(grid, points):
        alpha, sigma = process.alpha(t[None]), process.sigma(t[None])
        close(x, alpha * x0 + sigma / process.sigma(grid[:1]) * start, rtol=1e-5, atol=1e-5)


@every("pair", PAIRS)
def test_real_calls_are_the_declared_ones(pair):
    solver, process = pair[0], narrowed(pair[1])
    watched = Watched(Gaussian(process))
    grid, x = Uniform()(process, 4), torch.randn(2, 3, dtype=torch.float64)
    history, counts = [], []
    for t, s in zip(grid, grid[1:]):
        before = watched.calls
        x = solver(watched, process, x, t.expand(2), s.expand(2), Cond(), history)
        counts.append(watched.calls - before)
    assert counts == [solver.calls] * 3 + [1]  # one call in the step that ends at the data
    assert all(process.t_min <= t <= process.t_max for t in watched.times)


@every("pair", PAIRS)
def test_a_solver_is_the_same_map_in_every_process(pair):
    solver, process = pair
    angles = torch.linspace(1.3, 0.2, 6, dtype=torch.float64)
    x = torch.randn(3, 2, dtype=torch.float64)
    own, ve = process.time_of(angles), VE.time_of(angles)
    expected = trajectory(solver, FiniteData(VE, torch.eye(2, dtype=torch.float64)), VE, x, ve)[-1]
    oracle = FiniteData(process, torch.eye(2, dtype=torch.float64))
    end = trajectory(solver, oracle, process, x * process.alpha(own[:1]), own)[-1]
    close(end, expected * process.alpha(own[-1:]), rtol=1e-9, atol=1e-9)


@every("pair", PAIRS)
def test_each_row_takes_its_own_step(pair):
    """Rows that end at the data or start in pure noise stand in one batch with rows that do not."""
    solver, process = pair
    inner = inner_times(process)
    t = torch.cat([f64(process.t_max, process.t_max), inner[1:]])
    s = torch.cat([f64(process.t_data, process.t_min), f64(process.t_data), inner[1:-1]])
    x = torch.randn(len(t), 3, dtype=torch.float64)
    oracle = Gaussian(process, mean=0.3)
    together = solver(oracle, process, x, t, s, Cond(), [])
    for i in range(len(t)):
        row = slice(i, i + 1)
        close(
            together[row],
            solver(oracle, process, x[row], t[row], s[row], Cond(), []),
            rtol=1e-9,
            atol=1e-12,
        )


@every("pair", PAIRS)
def test_a_row_that_ends_at_the_data_ignores_what_a_network_says_there(pair):
    solver, process = pair[0], narrowed(pair[1])
    x0 = torch.randn(2, 3, dtype=torch.float64)

    def undefined_at_the_data(x_t, t, cond, s=None):
        return torch.where(t[:, None] > process.t_data, x0, math.nan)

    t, s = rows(process.t_max, 2), f64(process.t_data, process.t_min)
    end = solver(
        undefined_at_the_data, process, torch.randn(2, 3, dtype=torch.float64), t, s, Cond(), []
    )
    close(end[0], x0[0], rtol=0)
    assert torch.isfinite(end).all()


@every(
    "pair",
    {
        name: pair
        for name, pair in PAIRS.items()
        if pair[1].alpha(f64(pair[1].t_max)).item() < 1e-12
    },
)
def test_the_first_step_from_pure_noise_is_one_of_first_order(pair):
    # sigma/alpha is infinite there (in Trig up to the rounding of pi/2), so nothing may be
    # extrapolated from it.
    solver, process = pair
    oracle, x = Gaussian(process, mean=0.3), torch.randn(2, 3, dtype=torch.float64)
    t, s = rows(process.t_max, 2), process.time_of(f64(1.0, 1.4))
    euler = Euler()(oracle, process, x, t, s, Cond(), [])
    close(solver(oracle, process, x, t, s, Cond(), []), euler, rtol=1e-9)


def test_orders_and_calls_of_the_known_solvers():
    known = {"euler": (1, 1), "heun": (2, 2), "midpoint": (2, 2), "dpmpp_2m": (2, 1)}
    assert {kind: (SOLVERS[kind].order, SOLVERS[kind].calls) for kind in known} == known


def test_a_solver_steps_rectified_flow_by_its_velocity():
    # Euler on v = noise - x0, the form of every flow sampler.
    flow = RectifiedFlow()
    x, x0 = torch.randn(2, 3, 2, dtype=torch.float64)
    v = (x - x0) / 0.8
    close(Euler()(constant(x0), flow, x, rows(0.8, 3), rows(0.5, 3), Cond()), x + (0.5 - 0.8) * v)


@pytest.mark.parametrize(
    "method",
    ["consistency_distillation", "multi_boundary", "progressive", "consistency_trajectory"],
)
def test_single_steps_are_taken_by_solvers_that_remember_nothing(method):
    """A multistep solver without its history is Euler: a run file that asks for it would not get
    it.
    """
    from fewstep.learning.method import Method

    assert isinstance(Method.parse({"kind": method, "solver": "midpoint"}).solver, Midpoint)
    with pytest.raises(ValueError, match="valid: euler, heun, midpoint"):
        Method.parse({"kind": method, "solver": "dpmpp_2m"})
