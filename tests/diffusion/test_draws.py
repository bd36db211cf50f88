"""Random numbers keyed by sample: the same for every split of a batch, independent in everything
else.
"""

import itertools
import math

import pytest
import torch
from tests.diffusion.cases import close

from fewstep.diffusion.draws import BLOCK, Draws

KINDS = {
    "normal": lambda d: d.normal(3),
    "uniform": lambda d: d.uniform(3),
    "integers": lambda d: d.integers(1000, 3),
}
each_kind = pytest.mark.parametrize("draw", KINDS.values(), ids=KINDS.keys())


def draws(rows=range(50), **key):
    return Draws(key.pop("seed", 1), rows, **key)


# A number belongs to its row


@each_kind
@pytest.mark.parametrize("cuts", [(1,), (16, 32), (5, 17, 49), tuple(range(1, 50))])
def test_any_split_of_the_rows_gives_the_same(draw, cuts):
    parts = [draw(draws(range(a, b))) for a, b in itertools.pairwise((0, *cuts, 50))]
    assert torch.equal(torch.cat(parts), draw(draws()))


@each_kind
def test_any_order_and_any_choice_of_rows_gives_the_same(draw):
    everything = draw(draws())
    for rows in ([49, 0, 17, 16, 15], [3], [7, 7, 40], list(range(49, -1, -1))):
        assert torch.equal(draw(draws(rows)), everything[rows])


@each_kind
def test_rows_do_not_depend_on_how_many_there_are(draw):
    assert torch.equal(draw(draws(range(1000, 1003))), draw(draws(range(1100)))[1000:1003])


@each_kind
def test_later_draws_keep_the_law(draw):
    one, other = draws(), draws(range(20, 30))
    for _ in range(3):
        assert torch.equal(draw(one)[20:30], draw(other))


@each_kind
def test_no_rows_give_an_empty_tensor(draw):
    assert draw(draws(())).shape == (0, 3)


@each_kind
def test_select_is_the_same_rows_at_the_same_count(draw):
    one = draws(range(100, 150))
    draw(one)  # a count that is not 0
    part, count = one.select(10, 25), one.count
    everything = draw(one)
    assert count == 1
    assert torch.equal(draw(part), everything[10:25])
    assert torch.equal(draw(part), draw(one)[10:25])


@each_kind
def test_select_of_a_fork_is_the_fork_of_a_selection(draw):
    assert torch.equal(draw(draws().fork("a").select(3, 9)), draw(draws().select(3, 9).fork("a")))


@each_kind
def test_the_global_generator_plays_no_part(draw):
    first = draw(draws())
    state = torch.get_rng_state()
    torch.manual_seed(99)
    assert torch.equal(draw(draws()), first)
    torch.set_rng_state(state)
    draw(draws())
    assert torch.equal(torch.get_rng_state(), state)


# Shared draws


@each_kind
def test_shared_draws_are_one_value_for_every_row_and_part(draw):
    one, other = draws(), draws([7])
    value = draw(one.shared())
    assert value.shape == (3,)
    assert torch.equal(value, draw(other.shared()))
    assert torch.equal(draw(one.select(4, 6).shared()), draw(one.shared()))


def test_shared_draws_advance_the_count_and_differ_each_time():
    one = draws()
    first = one.shared()
    second = one.shared()
    assert one.count == 2
    assert not torch.equal(first.normal(3), second.normal(3))
    assert not torch.equal(first.normal(3), first.normal(3))
    assert not torch.equal(draws().shared().normal(3), draws().normal(3)[0])


# Independence

LAWS = {
    "row": (draws(range(4096)), draws(range(4096, 8192))),
    "neighbour": (draws(range(0, 8192, 2)), draws(range(1, 8192, 2))),
    "seed": (draws(range(4096)), draws(range(4096), seed=2)),
    "stream": (draws(range(4096), stream="a"), draws(range(4096), stream="b")),
    "step": (draws(range(4096), step=1), draws(range(4096), step=2)),
    "update": (draws(range(4096)), draws(range(4096), update=1)),
    "fork": (draws(range(4096)), draws(range(4096)).fork("a")),
    "forks": (draws(range(4096)).fork("a"), draws(range(4096)).fork("b")),
    "swapped": (draws(range(4096), step=1, update=2), draws(range(4096), step=2, update=1)),
}


@pytest.mark.parametrize("pair", LAWS.values(), ids=LAWS.keys())
def test_another_key_gives_independent_numbers(pair):
    one, other = (d.select(0, 4096).normal(4).double().flatten() for d in pair)
    n = len(one)
    assert abs((one * other).mean().item()) < 4 / math.sqrt(n)
    assert abs(((one**2 - 1) * (other**2 - 1)).mean().item() / 2) < 4 / math.sqrt(n)


def test_counts_give_independent_numbers():
    one = draws(range(4096))
    first, second = one.normal(4).double(), one.normal(4).double()
    assert abs((first * second).mean().item()) < 4 / math.sqrt(first.numel())


def test_blocks_and_rows_are_all_different():
    values = draws(range(20 * BLOCK)).uniform()
    assert len(set(values.tolist())) == 20 * BLOCK


def test_forks_depend_on_their_name_alone():
    one = draws()
    one.normal(3)
    assert torch.equal(one.fork("a").normal(3), draws().fork("a").normal(3))


# Distributions


def test_normal_numbers_have_the_moments_of_a_normal():
    x = draws(range(4096)).normal(16)
    assert x.dtype == torch.float32
    assert x.shape == (4096, 16)
    x, n = x.double(), x.numel()
    # Mean, variance, third and fourth moment with their standard errors 1, √2, √15 and √96 over √n.
    for power, moment, error in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert (x**power).mean().item() == pytest.approx(moment, abs=4 * math.sqrt(error / n))


def test_uniform_numbers_are_float64_in_the_unit_interval():
    u = draws(range(4096)).uniform(16)
    assert u.dtype == torch.float64
    assert u.min() >= 0
    assert u.max() < 1
    assert u.min() < 1e-3
    assert u.max() > 1 - 1e-3
    assert u.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / u.numel()))
    assert (u**2).mean().item() == pytest.approx(1 / 3, abs=4 * math.sqrt(4 / 45 / u.numel()))
    # More digits than float32 holds.
    assert (u.float().double() != u).any()


@pytest.mark.parametrize(("high", "bound"), [(1, 1e-9), (2, 10.9), (10, 27.9), (40, 72.1)])
def test_integers_are_uniform(high, bound):
    k = draws(range(4096)).integers(high, 4)
    assert k.dtype == torch.int64
    counts = torch.bincount(k.flatten(), minlength=high)
    assert len(counts) == high
    expected = k.numel() / high
    assert (
        (counts - expected) ** 2 / expected
    ).sum() < bound  # chi-square, high - 1 degrees of freedom, 0.1%


def test_shapes():
    one = draws(range(3))
    assert one.normal().shape == (3,)
    assert one.uniform(2, 4).shape == (3, 2, 4)
    assert one.integers(5).shape == (3,)
    close(torch.tensor(one.count), torch.tensor(3))
