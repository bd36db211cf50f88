"""The grids that nobody chose: solvers have their order along them, steps are counted exactly, and
no time is taken twice.
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
    narrowed,
    trajectory,
)
from tests.oracles import Gaussian

from fewstep.choice import replaced
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.process import VarianceExploding, VariancePreservingTable
from fewstep.diffusion.samplers import FlowMap, Ode
from fewstep.diffusion.solvers import Dpmpp2m, Euler, Heun, Midpoint
from fewstep.diffusion.times import (
    Auto,
    Karras,
    Linspace,
    Segments,
    Strided,
    Times,
    Trailing,
    Uniform,
)

TABLE = VariancePreservingTable()
DDPM = VariancePreservingTable(beta_start=1e-4, beta_end=0.02, schedule="linear")
SECOND = {kind: solver for kind, solver in SOLVERS.items() if solver.order == 2}
ORDERS = {f"{s}-{p}": (SECOND[s], PROCESSES[p]) for s in SECOND for p in PROCESSES} | {
    f"{s}-ddpm": (SECOND[s], DDPM) for s in SECOND
}


def worst(solver, process, n):
    """The largest relative error of N(0, std²), of four std. A grid that comes to t_min ends with
    one step of fixed length to the data, whatever n is: that step is part of what the error is
    taken from.
    """
    grid = Ode(n, solver=solver).grid(process)
    oracle = Gaussian(process, std=f64(0.25, 0.5, 1.0, 2.0))
    stop = grid[-2] if abs(grid[-2] - process.t_min) < 1e-9 else grid[-1]
    start, stop, end = (t.expand(4) for t in (grid[0], stop, grid[-1]))
    exact = oracle.spread(stop) / oracle.spread(start)
    if stop[0] != end[0]:
        exact = exact * oracle.step_gain(stop, end)
    x = trajectory(solver, oracle, process, torch.ones(4, 1, dtype=torch.float64), grid)[-1]
    return (x[:, 0] / exact - 1).abs().max().item()


@every("pair", ORDERS)
def test_second_order_solvers_are_of_second_order_along_the_default_grid(pair):
    """Over four doublings at least order 1.4: 2 is a limit, 1 is that of a solver of first order
    (and of all solvers on even indices of a table).
    """
    few, many = worst(*pair, 8), worst(*pair, 128)
    assert math.log2(few / many) / 4 > 1.4
    assert many < 4e-3


def test_on_even_indices_heun_is_of_first_order(monkeypatch):
    monkeypatch.setattr(Ode, "grid", lambda self, process: Trailing()(process, self.steps))
    assert math.log2(worst(Heun(), TABLE, 16) / worst(Heun(), TABLE, 64)) / 2 < 1.1


@pytest.mark.parametrize(("n", "percent"), [(8, 2.44), (16, 0.729), (32, 0.194), (64, 0.0498)])
def test_heun_on_the_table_of_stable_diffusion_in_numbers(n, percent):
    """Even indices would give 19.5, 10, 5.1, 2.7 %."""
    oracle = Gaussian(TABLE)
    x = f64(1.0)[None]
    end = Ode(n, Auto(), Heun())(oracle, TABLE, x, Cond(), Draws(0, range(1)))
    error = 100 * abs((end / oracle.flow(x, f64(999), f64(-1))).item() - 1)
    assert error == pytest.approx(percent, rel=0.01)


@pytest.mark.parametrize("end", ["t_data", "t_min"])
def test_second_order_takes_even_angles_of_a_table_and_all_others_its_indices(end):
    assert torch.equal(Ode(8, Auto(end), Euler()).grid(TABLE), Auto(end)(TABLE, 8))
    assert torch.equal(Ode(8, Auto(end)).grid(TABLE), Uniform(end)(TABLE, 8))
    assert torch.equal(Ode(8, Auto(end, trailing=True)).grid(TABLE), Trailing(end)(TABLE, 8))
    assert torch.equal(Ode(8, Trailing(end)).grid(TABLE), Trailing(end)(TABLE, 8))
    assert torch.equal(FlowMap(8, Auto(end)).grid(TABLE), Auto(end)(TABLE, 8))
    for process in (VarianceExploding(), PROCESSES["rectified_flow"]):
        assert torch.equal(Ode(8, Auto(end)).grid(process), Auto(end)(process, 8))


# More steps than times

FULL = {
    "trailing": Trailing(),
    "trailing to t_min": Trailing("t_min"),
    "whole": Linspace(whole=True),
    "auto of others": Auto(trailing=True),
    "strided": Strided(Trailing(), 1001),
    "segments": Segments(Trailing(), 1001),
}


@every("times", FULL)
@every("sampler", SAMPLERS)
def test_no_sampler_comes_to_a_time_twice(sampler, times):
    """A table of 1000 has no 1001 steps; before the first of them it is said so."""
    chosen = replaced(sampler, times=times, steps=1001)
    watched = Watched(Gaussian(TABLE))
    with pytest.raises(ValueError, match=r"1001 steps are too many for .*times in this variance"):
        chosen(watched, TABLE, torch.randn(2, 3), Cond(), Draws(0, range(2)))
    assert watched.calls == 0


@every("solver", SECOND)
def test_more_steps_than_indices_are_finite_along_the_default_grid(solver):
    small = VariancePreservingTable(size=20)
    x = Ode(50, solver=solver)(
        Gaussian(small), small, torch.randn(2, 3), Cond(), Draws(0, range(2))
    )
    assert torch.isfinite(x).all()


def test_a_grid_of_any_number_of_steps_takes_no_memory():
    for times in (Karras(), Linspace(), Trailing(), Uniform(), Auto()):
        with pytest.raises(ValueError, match="more than a grid of 1,000,000"):
            times(VarianceExploding(), 10**12)


@pytest.mark.parametrize("rho", [1e-3, 0.0, 1e300, math.nan])
def test_a_rho_without_a_grid_is_refused(rho):
    for kind in ("karras", "auto"):
        with pytest.raises(ValueError, match="than or equal to"):
            Times.parse({"kind": kind, "rho": rho})
    for fine in (0.1, 1000.0):
        assert (Karras(fine)(VarianceExploding(), 40).diff() < 0).all()


# Evaluations


@every("solver", SOLVERS)
@every("process", PROCESSES)
@pytest.mark.parametrize("end", ["t_data", "t_min"])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_cost_is_that_of_the_calls(solver, process, end, n):
    """Also where the first step begins in pure noise, and costs one call."""
    sampler, watched = Ode(n, Auto(end), solver), Watched(Gaussian(process))
    sampler(watched, process, torch.randn(2, 3), Cond(), Draws(0, range(2)))
    assert watched.calls == sampler.cost(process) <= sampler.evaluations


def test_costs_in_numbers():
    flow = PROCESSES["rectified_flow"]
    assert [Ode(18, solver=s).cost(flow) for s in (Euler(), Heun(), Midpoint())] == [18, 34, 34]
    assert [Ode(18, solver=s).cost(narrowed(flow)) for s in (Heun(), Dpmpp2m())] == [35, 18]
    assert Ode(18).cost(VarianceExploding()) == 35
    assert Ode(1).cost(flow) == 1


def test_two_m_takes_its_last_step_to_t_min_with_second_order():
    """Diffusers does so from 15 steps on."""
    grid = Karras(end="t_min")(VarianceExploding(), 3)
    oracle, x = Gaussian(VarianceExploding()), f64(80.0)[None]
    points = trajectory(Dpmpp2m(), oracle, VarianceExploding(), x, grid)
    t, s = grid[2:3], grid[3:4]
    one = Euler()(oracle, VarianceExploding(), points[2], t, s, Cond())
    x0, before = oracle(points[2], t), oracle(points[1], grid[1:2])
    share = (t / s).log() / (2 * (grid[1:2] / t).log())
    close(points[3], one + (1 - s / t)[:, None] * share[:, None] * (x0 - before))
