"""Time grids and densities against published numbers and against what every grid promises."""

import math

import pytest
import torch
from tests.diffusion.cases import DENSITIES, PROCESSES, TIMES, close, every, f64, narrowed

from fewstep.diffusion.densities import LogitNormal, LogNormal, LogStudent, UniformTime
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.process import (
    RectifiedFlow,
    Trig,
    VarianceExploding,
    VariancePreserving,
    VariancePreservingTable,
)
from fewstep.diffusion.times import (
    Above,
    Auto,
    Explicit,
    Karras,
    Linspace,
    Strided,
    Trailing,
    Uniform,
)

VE, TABLE = VarianceExploding(), VariancePreservingTable()
CASES = {f"{t}-{p}": (TIMES[t], PROCESSES[p]) for t in TIMES for p in PROCESSES}


def whole(grid):
    assert torch.equal(grid, grid.round())
    return [int(t) for t in grid]


# What every grid promises


def check_grid(times, process, n):
    grid = times(process, n)
    assert grid.dtype == torch.float64
    assert grid.device.type == "cpu"
    assert grid.shape == (n + 1,)
    assert (grid.diff() < 0).all(), grid
    assert grid[0].item() == process.t_max
    assert grid[-1].item() == (process.t_data if times.end == "t_data" else process.t_min)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 18, 50])
@every("case", CASES)
def test_a_grid_falls_from_t_max_to_its_end(case, n):
    times, process = case
    check_grid(times, narrowed(process), n)


@every("case", CASES)
def test_a_grid_serves_a_process_that_ends_in_pure_noise_or_says_that_it_cannot(case):
    times, process = case
    try:
        check_grid(times, process, 8)
    except ValueError:
        assert process.alpha(f64(process.t_max)).item() < 1e-12


@pytest.mark.parametrize("end", ["t_min", "t_data"])
@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("kind", [Karras, Linspace, Uniform])
@every("process", PROCESSES)
def test_both_ends_are_met_exactly(process, kind, n, end):
    check_grid(kind(end=end), narrowed(process), n)


# Karras


@pytest.mark.parametrize(
    ("points", "index", "level"),
    [
        (40, 1, 69.4509),
        (40, 17, 4.36556),
        (40, 18, 3.51970),
        (40, 19, 2.81839),
        (40, 22, 1.38237),
        (40, 37, 0.00643711),
        (40, 38, 0.00367659),
        (18, 11, 0.585348),
        (201, 106, 1.91284),
        (151, 62, 5.24850),
        (151, 67, 3.99122),
    ],
)
def test_karras_at_published_places(points, index, level):
    assert Karras(end="t_min")(VE, points - 1)[index].item() == pytest.approx(level, rel=2e-6)


def test_the_karras_grid_of_edm():
    levels = f64(
        80,
        57.58598,
        40.78557,
        28.37458,
        19.35245,
        12.91008,
        8.40094,
        5.31519,
        3.25682,
        1.92334,
        1.08817,
    )
    levels = torch.cat([levels, f64(0.58535, 0.29644, 0.13952, 0.05995, 0.02293, 0.00753, 0.002)])
    close(Karras()(VE, 18), torch.cat([levels, f64(0)]), rtol=1e-6, atol=5e-6)
    close(Karras(end="t_min")(VE, 17), levels, rtol=1e-6, atol=5e-6)


def test_the_karras_grid_of_improved_consistency_training():
    levels = f64(
        80,
        45.31373,
        24.40834,
        12.38158,
        5.83895,
        2.51522,
        0.96542,
        0.31828,
        0.08509,
        0.01672,
        0.002,
    )
    close(Karras(end="t_min")(VE, 10), levels, rtol=1e-6, atol=5e-6)


@every("process", PROCESSES)
def test_karras_is_one_grid_of_angles_in_every_process(process):
    process = narrowed(process)
    high, low = torch.tan(process.angle(f64(process.t_max, process.t_min))).tolist()
    expected = Karras(end="t_min")(VarianceExploding(t_min=low, t_max=high), 12)
    close(torch.tan(process.angle(Karras(end="t_min")(process, 12))), expected, rtol=1e-9)


def test_karras_with_rho_one_is_even():
    close(Karras(rho=1.0, end="t_min")(VE, 4), torch.linspace(80, 0.002, 5, dtype=torch.float64))


def test_karras_agrees_with_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EDMEulerScheduler(sigma_schedule="karras")
    scheduler.set_timesteps(18)
    close(Karras()(VE, 18), scheduler.sigmas, rtol=1e-5)  # theirs is float32


# Tables


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, [999]),
        (2, [999, 499]),
        (4, [999, 759, 499, 259]),
        (8, [999, 879, 759, 639, 499, 379, 259, 139]),
    ],
)
def test_the_grids_of_latent_consistency_models(n, expected):
    assert whole(Strided(Trailing(), 50)(TABLE, n)) == [*expected, -1]


@pytest.mark.parametrize("n", range(1, 13))
def test_the_grids_of_latent_consistency_models_are_those_of_diffusers(n):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.LCMScheduler()
    scheduler.set_timesteps(n)
    assert whole(Strided(Trailing(), 50)(TABLE, n))[:-1] == scheduler.timesteps.tolist()


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (8, [999, 874, 749, 624, 499, 374, 249, 124]),
        (16, [999, 937, 874, 811, 749, 687, 624, 561, 499, 437, 374, 311, 249, 187, 124, 61]),
        (20, list(range(999, 0, -50))),
    ],
)
def test_the_trailing_grids_of_a_table(n, expected):
    assert whole(Trailing()(TABLE, n)) == [*expected, -1]


@pytest.mark.parametrize("n", [1, 3, 4, 6, 7, 8, 10, 16, 25, 32, 50, 80])
def test_the_trailing_grids_are_those_of_diffusers(n):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(n)
    assert whole(Trailing()(TABLE, n))[:-1] == scheduler.timesteps.tolist()


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (8, [999, 874, 749, 624, 500, 375, 250, 125]),
        (16, [999, 937, 874, 812, 749, 687, 624, 562, 500, 437, 375, 312, 250, 187, 125, 62]),
        (20, [*range(999, 500, -50), *range(500, 0, -50)]),
    ],
)
def test_the_linspace_grids_of_a_table(n, expected):
    assert whole(Linspace(end="t_min", whole=True)(TABLE, n)) == [*expected, 0]


@pytest.mark.parametrize(
    "times", [Trailing(), Linspace(end="t_min", whole=True)], ids=["trailing", "linspace"]
)
def test_eight_steps_nest_in_sixteen(times):
    assert set(whole(times(TABLE, 8))) <= set(whole(times(TABLE, 16)))


def test_trailing_is_even_in_a_continuous_process():
    close(Trailing()(RectifiedFlow(), 4), f64(1, 0.75, 0.5, 0.25, 0))


# The others


@every("process", PROCESSES)
def test_uniform_is_even_in_angle(process):
    angles = process.angle(Uniform()(process, 9))
    close(angles.diff(), (angles[-1] - angles[0]).expand(9) / 9, rtol=1e-9)


def test_uniform_is_the_linear_grid_of_trigflow():
    close(Uniform()(Trig(sigma_data=1.0), 4), math.pi / 8 * f64(4, 3, 2, 1, 0), atol=1e-15)


def test_uniform_whole_times_are_the_nearest_indices():
    assert whole(Uniform(whole=True)(TABLE, 2)) == [999, 333, -1]
    below, at, above, top = TABLE.angle(f64(332, 333, 334, 999))
    assert below < top / 2 < above
    assert abs(at - top / 2) <= min(top / 2 - below, above - top / 2)


@pytest.mark.parametrize("of", [Trailing(), Karras(end="t_min")])
@pytest.mark.parametrize("n", [1, 3, 7, 12])
def test_strided_points_are_points_of_the_finer_grid(of, n):
    fine, grid = of(TABLE, 12), Strided(of, 12)(TABLE, n)
    assert set(grid.tolist()) <= set(fine.tolist())
    assert grid.tolist() == [fine[i * 12 // n].item() for i in range(n)] + [fine[-1].item()]


def test_explicit_times_serve_their_own_number_of_steps():
    times = Explicit(between=((0.8,), (2.5, 0.8, 0.3)))
    assert times(VE, 2).tolist() == [80, 0.8, 0.002]
    assert times(VE, 4).tolist() == [80, 2.5, 0.8, 0.3, 0.002]
    for n in (1, 3, 5):
        assert torch.equal(times(VE, n), Karras(end="t_min")(VE, n))
    assert Explicit(between=((0.8,),), end="t_data")(VE, 2).tolist() == [80, 0.8, 0]
    assert Explicit(between=((),), otherwise=Uniform())(VE, 1).tolist() == [80, 0.002]


@pytest.mark.parametrize("between", [(0.3, 0.8), (0.8, 0.8)])
def test_explicit_times_must_decrease(between):
    with pytest.raises(ValueError, match="must decrease"):
        Explicit(between=(between,))


@pytest.mark.parametrize(
    "between", [(80.0,), (100.0,), (0.002,), (0.0,), (0.5, 0.001), (90.0, 0.5)]
)
def test_explicit_times_must_lie_inside(between):
    with pytest.raises(ValueError, match=r"between 0\.002 and 80"):
        Explicit(between=(between,))(VE, len(between) + 1)


# Densities

ROWS = 20_000


def normal_cdf(x):
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def far_from(times, cdf):
    """Kolmogorov-Smirnov: the largest distance of the empirical distribution, in units of 1/√n."""
    n = len(times)
    return (cdf(times.sort().values) - (torch.arange(n) + 0.5) / n).abs().max().item() * math.sqrt(
        n
    )


# 1.95 is passed with probability 0.999 by the true distribution.


@every("process", PROCESSES)
@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.0, 0.5)])
def test_log_normal_levels(process, mean, std):
    times = LogNormal(mean, std)(process, Draws(0, range(ROWS)))
    inside = times[(times > process.t_min) & (times < process.t_max)]
    ratio = torch.log(process.sigma(inside) / process.alpha(inside))
    ends = f64(process.t_min, process.t_max)
    ends = (torch.log(process.sigma(ends) / process.alpha(ends)) - mean) / std
    low, high = normal_cdf(ends.nan_to_num()).tolist()
    assert len(inside) / ROWS == pytest.approx(high - low, abs=4 * math.sqrt(0.25 / ROWS))
    assert far_from(ratio, lambda x: (normal_cdf((x - mean) / std) - low) / (high - low)) < 1.95


@every("process", PROCESSES)
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.4)])
def test_logit_normal_levels(process, mean, std):
    times = LogitNormal(mean, std)(process, Draws(0, range(ROWS)))
    u = process.sigma(times) / (process.sigma(times) + process.alpha(times))
    # A table ends at 0.028 and 0.936, where some draws may be cut off: compare inside.
    low, high = (normal_cdf((torch.logit(f64(e)) - mean) / std).item() for e in (0.05, 0.9))
    u = u[(u > 0.05) & (u < 0.9)]
    assert (
        far_from(u, lambda x: (normal_cdf((torch.logit(x) - mean) / std) - low) / (high - low))
        < 1.95
    )


def test_logit_normal_is_the_sigmoid_of_a_normal_for_rectified_flow():
    times = LogitNormal(0.3, 0.7)(RectifiedFlow(), Draws(0, range(64)))
    close(times, torch.sigmoid(0.3 + 0.7 * Draws(0, range(64)).normal().double()))


@every("process", PROCESSES)
def test_uniform_times(process):
    times = UniformTime()(process, Draws(0, range(ROWS)))
    assert times.min() >= process.t_min
    assert times.max() <= process.t_max
    assert far_from(times, lambda t: (t - process.t_min) / (process.t_max - process.t_min)) < 1.95


def test_uniform_whole_times_reach_every_index():
    table = VariancePreservingTable(size=20, t_max=19.0)
    times = UniformTime(whole=True)(table, Draws(0, range(ROWS)))
    counts = torch.bincount(times.long(), minlength=20)
    assert torch.equal(times, times.round())
    assert len(counts) == 20
    assert (
        (counts - ROWS / 20) ** 2 / (ROWS / 20)
    ).sum() < 44  # chi-square, 19 degrees of freedom, 0.1%


@every("process", PROCESSES)
@every("density", DENSITIES)
def test_a_density_gives_each_row_its_own_time(density, process):
    draws = Draws(3, range(100), stream="loss", step=7)
    times = density(process, draws)
    assert times.shape == (100,)
    assert times.dtype == torch.float64
    assert torch.isfinite(process.angle(times)).all()
    assert len(set(times.tolist())) > 90
    again = Draws(3, range(100), stream="loss", step=7)
    parts = [density(process, again.select(a, b)) for a, b in ((0, 33), (33, 70), (70, 100))]
    close(
        torch.cat(parts), times, rtol=1e-14
    )  # vectors of other lengths may round the last bit otherwise


@pytest.mark.parametrize(
    "wide", [LogNormal(-1.2, 4.0), LogitNormal(0.0, 5.0), UniformTime(), UniformTime(whole=True)]
)
@pytest.mark.parametrize(
    "table", [TABLE, VariancePreservingTable(t_min=19.0, t_max=979.0)], ids=["whole", "part"]
)
def test_times_of_a_table_stay_within_its_ends(wide, table):
    times = wide(table, Draws(0, range(ROWS)))
    assert times.min() >= table.t_min
    assert times.max() <= table.t_max


@pytest.mark.parametrize("end", ["t_data", "t_min"])
@pytest.mark.parametrize(
    ("process", "expected"),
    [
        (VE, Karras),
        (VariancePreserving(), Karras),
        (RectifiedFlow(), Linspace),
        (Trig(), Linspace),
        (RectifiedFlow(t_max=0.99), Karras),
    ],
)
def test_auto_takes_the_grid_of_the_process(process, expected, end):
    assert torch.equal(Auto(end)(process, 6), expected(end=end)(process, 6))


def test_auto_takes_trailing_indices_of_a_table():
    assert torch.equal(Auto()(TABLE, 4), Trailing()(TABLE, 4))
    assert whole(Auto("t_min")(TABLE, 3)) == [999, 666, 333, 0]
    assert whole(Auto("t_min", trailing=True)(TABLE, 4)) == [999, 749, 499, 249, 0]
    assert whole(Auto("t_min", trailing=True)(TABLE, 50)) == [*range(999, 0, -20), 0]
    assert whole(Auto("t_min")(TABLE, 50)) == whole(Linspace("t_min", whole=True)(TABLE, 50))
    assert whole(Auto("t_min")(TABLE, 999)) == [*range(999, -1, -1)]


def test_explicit_times_of_one_number_of_steps_are_given_once():
    with pytest.raises(ValueError, match="same number of steps"):
        Explicit(((0.8,), (2.0,)))


@every("process", PROCESSES)
@pytest.mark.parametrize(("df", "low"), [(0.01, 1.0), (0.01, 0.3), (3.0, 0.5), (1e4, 2.0)])
def test_log_student_levels(process, df, low):
    """Against scipy's distribution, cut off at both ends; where a process goes on to pure noise,
    levels from 80 up are t_max, and none is above 1000.
    """
    from scipy.stats import t as student

    top = min(1e3, math.tan(process.angle(f64(process.t_max)).item()))
    times = LogStudent(df, 0.1, 0.4, low)(process, Draws(0, range(ROWS)))
    if top == 1e3:
        whole, part = (student.cdf((math.log(v) - 0.1) / 0.4, df) for v in (top, 80.0))
        below = student.cdf((math.log(low) - 0.1) / 0.4, df)
        at_end = (times == process.t_max).double().mean().item()
        assert at_end == pytest.approx((whole - part) / (whole - below), rel=0.1, abs=1e-3)
        times, top = times[times != process.t_max], 80.0
    x = (torch.log(torch.tan(process.angle(times))) - 0.1) / 0.4
    ends = student.cdf([(math.log(level) - 0.1) / 0.4 for level in (low, top)], df)
    assert x.min() >= (math.log(low) - 0.1) / 0.4 - 1e-6
    assert (
        far_from(
            x, lambda y: torch.from_numpy((student.cdf(y, df) - ends[0]) / (ends[1] - ends[0]))
        )
        < 1.95
    )


def test_log_student_needs_room():
    with pytest.raises(ValueError, match=r"low=100 is not below the largest sigma/alpha, 80"):
        LogStudent(low=100.0)(VE, Draws(0, range(4)))


@every("process", PROCESSES)
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_above_stays_above_its_cut(process, n):
    grid = Above(low=1.0)(process, n)
    levels = torch.tan(process.angle(grid[:-1]))
    assert levels.min() >= 1 - 1e-9
    if n > 1 and process.t_data == 0:
        assert levels[-1].item() == pytest.approx(1)
    assert grid[-1] == process.t_min


def test_above_in_numbers():
    """The published two steps are 80 and 1; between them a grid of the process that ends at 1."""
    assert Above()(VE, 1).tolist() == [80.0, 0.002]
    assert Above()(VE, 2).tolist() == pytest.approx([80.0, 1.0, 0.002], rel=1e-12)
    middle = ((80 ** (1 / 7) + 1) / 2) ** 7
    assert Above()(VE, 3).tolist() == pytest.approx([80.0, middle, 1.0, 0.002])
    assert Above(end="t_data")(VE, 2).tolist() == pytest.approx([80.0, 1.0, 0.0])
