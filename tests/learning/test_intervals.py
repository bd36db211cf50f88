"""Which pair of neighbouring times a row gets, and how often."""

import math

import pytest
import torch

from fewstep.diffusion.densities import LogNormal
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.process import RectifiedFlow, VarianceExploding, VariancePreservingTable
from fewstep.diffusion.times import Auto, Karras
from fewstep.learning.consistency import adjacent

PROCESS = VarianceExploding()
BINS = 10
GRID = Karras(end="t_min")(PROCESS, BINS)
# N = 11 points on the increasing grid .002 … 80: the first stage of improved consistency training.
GOLDEN = [0.06263, 0.18174, 0.24550, 0.21349, 0.14245, 0.08060, 0.04108, 0.01958, 0.00894, 0.00398]
POINTS = [
    0.002,
    0.01672,
    0.08509,
    0.31828,
    0.96542,
    2.51522,
    5.83895,
    12.38158,
    24.40834,
    45.31373,
    80.0,
]


class Even(Draws):
    """Numbers spread evenly over [0, 1) instead of random ones: shares become exact to 1/size."""

    def uniform(self, *shape):
        size = len(self.rows)
        return (torch.arange(size, dtype=torch.float64) + 0.5) / size


def shares(t, grid):
    return torch.stack([(t == point).double().mean() for point in grid[:-1]])


def test_the_grid_is_the_papers():
    assert GRID.flip(0).tolist() == pytest.approx(POINTS, rel=1e-3, abs=5e-6)


@pytest.mark.parametrize("density", [None, LogNormal(-1.1, 2.0)])
def test_the_ends_are_neighbours_and_t_is_the_noisier(density):
    t, s = adjacent(GRID, Draws(0, range(500)), PROCESS, density)
    assert t.dtype == s.dtype == torch.float64
    assert (t > s).all()
    places = [(one == GRID).nonzero().item() for one in t]
    assert torch.equal(GRID[[place + 1 for place in places]], s)


def test_without_a_density_all_intervals_are_alike():
    rows = 16000
    t, _ = adjacent(GRID, Draws(0, range(rows)), PROCESS)
    counts = shares(t, GRID) * rows
    assert counts.sum() == rows
    expected = rows / BINS
    chi_square = ((counts - expected).square() / expected).sum()
    assert (
        chi_square < 27.9
    )  # 9 degrees of freedom: exceeded once in 1000 seeds, and the seed is fixed


def test_with_a_density_the_shares_are_those_of_the_paper():
    t, _ = adjacent(GRID, Even(0, range(200_000)), PROCESS, LogNormal(-1.1, 2.0))
    found = shares(t, GRID).flip(0)
    assert found.sum() == pytest.approx(1.0)
    assert found.tolist() == pytest.approx(
        GOLDEN, abs=1.5e-5
    )  # printed to 1e-5, counted to 1/200000


def test_with_a_density_the_random_counts_follow_the_shares():
    rows = 16000
    t, _ = adjacent(GRID, Draws(1, range(rows)), PROCESS, LogNormal(-1.1, 2.0))
    counts = (shares(t, GRID) * rows).flip(0)
    expected = torch.tensor(GOLDEN, dtype=torch.float64) * rows
    assert ((counts - expected).square() / expected).sum() < 27.9


@pytest.mark.parametrize(("mean", "std"), [(-1.1, 2.0), (0.0, 1.0), (2.0, 0.5)])
def test_the_shares_are_differences_of_the_error_function(mean, std):
    density = LogNormal(mean, std)
    t, _ = adjacent(GRID, Even(0, range(100_000)), PROCESS, density)
    edges = [math.erf((math.log(x) - mean) / (math.sqrt(2) * std)) for x in GRID.tolist()]
    expected = [(high - low) / (edges[0] - edges[-1]) for high, low in zip(edges, edges[1:])]
    assert shares(t, GRID).tolist() == pytest.approx(expected, abs=1.1e-5)


def test_another_process_draws_the_same_noise_levels():
    """The density is one of sigma/alpha: under a flow the same levels have other times and the same
    shares.
    """
    flow = RectifiedFlow(t_min=0.002 / 1.002, t_max=80 / 81)
    levels = GRID[1:-1]
    grid = torch.cat(
        [torch.tensor([flow.t_max]), levels / (1 + levels), torch.tensor([flow.t_min])]
    )
    t, s = adjacent(grid, Even(0, range(50_000)), flow, LogNormal(-1.1, 2.0))
    assert (t > s).all()
    assert shares(t, grid).flip(0).tolist() == pytest.approx(GOLDEN, abs=3e-5)


@pytest.mark.parametrize("density", [None, LogNormal(-1.1, 2.0)])
def test_the_extreme_draws_stay_inside_the_grid(density):
    class Extreme(Draws):
        value = 0.0

        def uniform(self, *shape):
            return torch.full((len(self.rows),), self.value, dtype=torch.float64)

    for value in (0.0, 1 - 2**-53):
        Extreme.value = value
        t, s = adjacent(GRID, Extreme(0, range(3)), PROCESS, density)
        assert (t > s).all()
        if density is not None:
            assert t[0] == (GRID[0] if value == 0 else GRID[-2])


def test_one_interval_has_no_choice():
    grid = Karras(end="t_min")(PROCESS, 1)
    for density in (None, LogNormal()):
        t, s = adjacent(grid, Draws(0, range(4)), PROCESS, density)
        assert t.tolist() == [80.0] * 4
        assert s.tolist() == [0.002] * 4


@pytest.mark.parametrize("density", [None, LogNormal(-1.1, 2.0)])
def test_a_table_has_no_more_intervals_than_indices(density):
    """1280 whole times of a table of 1000 name many twice: none of these is an interval."""
    table = VariancePreservingTable()
    grid = Auto("t_min")(table, 1280)
    assert (grid.diff() == 0).any()
    t, s = adjacent(
        grid, Even(0, range(100_000)) if density else Draws(0, range(100_000)), table, density
    )
    assert torch.equal(t - s, torch.ones_like(t))
    if density is None:
        assert len(t.unique()) == 999
