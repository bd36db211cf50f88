"""The same masks for two passes, and a random state that nobody else notices."""

import copy

import pytest
import torch
from torch import nn

from fewstep.diffusion.conditioning import Cond
from fewstep.learning.consistency import jump_and_goal
from fewstep.learning.dropout import SharedDropout, seeded, without_dropout

CPU = torch.device("cpu")


def network():
    """Two dropouts, the second behind weights: masks of different shapes, drawn one after the
    other.
    """
    return nn.Sequential(
        nn.Linear(5, 40), nn.Dropout(0.5), nn.SiLU(), nn.Linear(40, 7), nn.Dropout(0.3)
    )


def test_both_passes_get_the_same_masks():
    student = network()
    target = copy.deepcopy(student)
    x = torch.randn(6, 5)
    masks = SharedDropout(CPU)
    with masks:
        a = student(x)
    with masks:
        b = target(x)
    assert torch.equal(a, b)
    assert not torch.equal(a, student(x))  # the masks are there
    # On other inputs too: what is dropped at the end is exactly 0.
    with masks:
        c = target(x + 1)
    assert torch.equal(c == 0, a == 0)
    assert not torch.equal(c, a)


def test_two_steps_get_different_masks():
    ones, drop = torch.ones(200), nn.Dropout(0.5)
    found = []
    for _ in range(3):
        masks = SharedDropout(CPU)
        with masks:
            first = drop(ones)
        with masks:
            second = drop(ones)
        assert torch.equal(first, second)
        found.append(first)
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_the_state_advances_by_exactly_one_pass():
    net, x = network(), torch.randn(6, 5)
    start = torch.get_rng_state()
    net(x)
    one_pass = torch.get_rng_state()
    assert not torch.equal(one_pass, start)
    torch.set_rng_state(start)
    masks = SharedDropout(CPU)
    with masks:
        net(x)
    assert torch.equal(torch.get_rng_state(), one_pass)
    with masks:
        net(x)
    assert torch.equal(torch.get_rng_state(), one_pass)


def test_random_numbers_between_the_passes_do_not_matter():
    net, x = network(), torch.randn(6, 5)
    start = torch.get_rng_state()
    net(x)
    one_pass = torch.get_rng_state()
    torch.set_rng_state(start)
    masks = SharedDropout(CPU)
    with masks:
        a = net(x)
    torch.randn(1000)
    with masks:
        b = net(x)
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), one_pass)


def test_the_gradient_sees_the_masks_of_the_first_pass():
    net = nn.Sequential(nn.Dropout(0.5))
    x = torch.ones(100, requires_grad=True)
    masks = SharedDropout(CPU)
    with masks:
        a = net(x)
    with torch.no_grad(), masks:
        b = net(3 * torch.ones(100))
    a.sum().backward()
    assert torch.equal(3 * x.grad, b)
    assert set(x.grad.tolist()) == {0.0, 2.0}


def test_seeded_is_a_function_of_its_seed():
    def drawn(seed):
        with seeded(seed, CPU):
            return torch.rand(5), nn.Dropout(0.5)(torch.ones(50))

    first = drawn(7)
    torch.rand(3)
    assert all(torch.equal(a, b) for a, b in zip(first, drawn(7), strict=True))
    assert not torch.equal(first[0], drawn(8)[0])
    assert torch.equal(
        drawn(2**63 - 1)[0], drawn(2**63 - 1)[0]
    )  # the largest that the trainer gives


def test_seeded_restores_the_state():
    before = torch.get_rng_state()
    with seeded(1, CPU):
        torch.rand(10)
        with seeded(2, CPU):
            inner = torch.rand(3)
        after_inner = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(1, CPU):
        torch.rand(10)
        assert torch.equal(torch.rand(3), after_inner)
    with seeded(2, CPU):
        assert torch.equal(torch.rand(3), inner)


def test_seeded_restores_the_state_behind_an_error():
    before = torch.get_rng_state()

    def failing():
        with seeded(1, CPU):
            torch.rand(10)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert torch.equal(torch.get_rng_state(), before)


class Student(nn.Module):
    """A network with dropout in the place of a consistency function."""

    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, x_t, t, cond, s=None):
        return self.network(x_t)[:, :5]


def looks(masks, student, target=None):
    """Both passes at one place, and the random state behind them."""
    x, t = (
        torch.randn(6, 5, generator=torch.Generator().manual_seed(3)),
        torch.ones(6, dtype=torch.float64),
    )
    torch.manual_seed(1)
    return *jump_and_goal(
        student, target or student, x, t, x, t, Cond(), masks
    ), torch.get_rng_state()


@pytest.mark.parametrize("slow", [False, True])
def test_the_target_has_the_masks_that_are_asked_for(slow):
    student = Student()
    target = copy.deepcopy(student) if slow else student
    found = {masks: looks(masks, student, target) for masks in ("shared", "own", "none")}
    jump, goal, after_shared = found["shared"]
    assert torch.equal(jump, goal)
    for masks in ("own", "none"):
        assert torch.equal(found[masks][0], jump)  # the student's pass is the same
        assert not torch.equal(found[masks][1], jump)
    plain = copy.deepcopy(student).eval()
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(found["none"][1], plain(x, None, None))
    # The state advances by one pass, or by two where the target draws masks of its own.
    torch.manual_seed(1)
    student(x, None, None)
    assert torch.equal(torch.get_rng_state(), after_shared)
    assert torch.equal(torch.get_rng_state(), found["none"][2])
    own = student(x, None, None)
    assert torch.equal(torch.get_rng_state(), found["own"][2])
    assert torch.equal(own, found["own"][1])
    assert all(layer.training for layer in student.modules())
    for _, goal, _ in found.values():
        assert not goal.requires_grad


def test_masks_come_back_behind_an_error():
    net = network()
    net[4].eval()  # was off before
    off = without_dropout(net)
    off.__enter__()
    assert not net[1].training
    assert not off.__exit__(ZeroDivisionError, ZeroDivisionError(), None)  # the error goes on
    assert net[1].training
    assert not net[4].training
    with without_dropout(lambda x: x):
        pass
