"""One update on given rows: its gradient, its step, and what it does where memory runs out."""

import pytest
import torch
from tests.training.tiny import Rhythm, Single, assert_same, config, part, state, trainer

from fewstep.training.optimizers import Sgd
from fewstep.training.step import Attempt

PLAIN = {"optimizer": Sgd(lr=0.5), "batch": 8}


def one_of(method=None, **changes):
    """A trainer whose first update is at hand, with its clock."""
    one = trainer(method or Single(dropout=0.0), None, config(**{**PLAIN, **changes}))
    clock = one.clock(0)
    return one, one.method.updates(clock)[0], clock


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_an_update_is_a_step_of_descent_along_the_clipped_gradient(clip):
    """w - rate·factor·g, where the factor brings the norm of g down to the limit."""
    one, update, clock = one_of(clip=clip)
    other, *_ = one_of(clip=clip)
    sums = other.step.backward(update, clock, 0, 0)
    gradients = [p.grad.double() for p in other.nets.student.parameters()]
    before = [p.detach().double() for p in other.nets.student.parameters()]
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    factor = min(1.0, clip / (norm.item() + 1e-6)) if clip else 1.0
    rate = 0.5 * other.config.schedule(clock)
    done = one.step(update, clock, 0, 0)
    for now, old, gradient in zip(one.nets.student.parameters(), before, gradients):
        torch.testing.assert_close(
            now.detach().double(), old - rate * factor * gradient, rtol=0, atol=1e-7
        )
    assert not done.bad
    assert done.numbers["norm.student"].item() == pytest.approx(norm.item(), rel=1e-5)
    assert done.numbers["student"].item() == pytest.approx(sums.total.item(), rel=1e-6)
    assert done.numbers["rate"] == one.config.schedule(clock)


def test_the_total_is_the_sum_of_the_terms_and_not_of_the_notes():
    one, update, clock = one_of()
    sums = one.step.backward(update, clock, 0, 0)
    assert set(sums.means) == {"student", "size"}
    assert torch.equal(sums.total, sums.means["student"])


def test_rows_may_be_given():
    """The mean is over the global batch, so the parts of a batch add up to it."""
    whole, update, clock = one_of()
    found = whole.step.backward(update, clock, 0, 0).total
    parts = []
    for rows in (range(3), range(3, 8)):
        one, *_ = one_of()
        one.step.rows = rows
        parts.append(one.step.backward(update, clock, 0, 0).total)
    torch.testing.assert_close(sum(parts), found)


def test_what_is_not_finite_is_left_out():
    one, update, clock = one_of()
    before = state(one)
    sums = one.step.backward(update, clock, 0, 0)
    done = one.step.descend(update, clock, sums._replace(total=torch.tensor(torch.nan)))
    assert done.bad
    assert_same(part(state(one), "net"), part(before, "net"))


def test_gradients_reach_the_networks_that_the_update_trains():
    one, update, clock = one_of(Rhythm(dropout=0.0))
    one.step.let_learn(update.trains)
    one.step.backward(update, clock, 0, 0)
    has = {
        name: any(p.grad is not None for p in module.parameters())
        for name, module in one.state.modules.items()
    }
    assert has == {"student": False, "fake": True, "target": False}


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("x"), RuntimeError("std::bad_alloc")], ids=repr
)
def test_an_attempt_ends_quietly_where_memory_runs_out(error):
    if isinstance(error, torch.OutOfMemoryError):
        error = torch.OutOfMemoryError("CUDA out of memory")
    with Attempt(final=False) as attempt:
        raise error
    assert attempt.short
    final = Attempt(final=True)
    with pytest.raises(type(error)), final:
        raise error
    assert not final.short


@pytest.mark.parametrize("error", [ValueError("out of memory"), RuntimeError("shapes"), KeyError()])
def test_an_attempt_lets_other_errors_through(error):
    attempt = Attempt(final=False)
    with pytest.raises(type(error)), attempt:
        raise error
    assert not attempt.short


def test_an_attempt_that_succeeds_is_not_short():
    with Attempt(final=False) as attempt:
        pass
    assert not attempt.short
