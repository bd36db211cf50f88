"""Factors of the learning rate at the places that matter."""

import math

import pytest
from tests.training.tiny import Phased, Single, config, trainer

from fewstep.learning.method import Clock
from fewstep.learning.schedules import Constant, Cosine, Linear, Schedule
from fewstep.training.log import read_log
from fewstep.training.optimizers import Sgd

ALL = [Constant, Cosine, Linear]


def at(schedule, step, steps=100):
    return schedule(Clock(step, steps, 8, 0, step, steps))


@pytest.mark.parametrize("kind", ALL)
def test_the_warm_up_is_a_line_to_one(kind):
    schedule = kind(warmup=10)
    assert [at(schedule, step) for step in range(11)] == pytest.approx(
        [*(k / 10 for k in range(1, 11)), 1.0]
    )


@pytest.mark.parametrize("kind", ALL)
def test_without_warm_up_it_begins_at_one(kind):
    assert at(kind(), 0) == 1.0


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("steps", [1, 5, 10])
def test_a_warm_up_as_long_as_the_run_is_allowed(kind, steps):
    found = [at(kind(warmup=10), step, steps) for step in range(steps)]
    assert found == pytest.approx([(k + 1) / 10 for k in range(steps)])


def test_constant_stays():
    assert {at(Constant(warmup=10), step) for step in range(9, 100)} == {1.0}


def test_cosine():
    schedule = Cosine(warmup=20, end=0.1)
    found = [at(schedule, step) for step in range(20, 100)]
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * k / 80)) / 2 for k in range(80)]
    assert found == pytest.approx(expected)
    assert at(schedule, 60) == pytest.approx(0.55)  # half way
    assert schedule.after_warmup(1.0) == pytest.approx(0.1)
    assert schedule.after_warmup(1.5) == pytest.approx(0.1)
    assert Cosine().after_warmup(1.0) == pytest.approx(0.0)
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize(
    ("end", "last"), [(0.0, 1 / 80), (0.2, 0.2 + 0.8 / 80), (3.0, 3.0 - 2 / 80)]
)
def test_linear(end, last):
    schedule = Linear(warmup=20, end=end)
    assert at(schedule, 20) == 1.0
    assert at(schedule, 60) == pytest.approx((1 + end) / 2)
    assert at(schedule, 99) == pytest.approx(last)  # the end itself would be step 100
    assert schedule.after_warmup(1.0) == pytest.approx(end)
    assert schedule.after_warmup(2.0) == pytest.approx(end)


@pytest.mark.parametrize("kind", ALL)
def test_only_the_place_in_the_phase_matters(kind):
    schedule = kind(warmup=3)
    first = [schedule(Clock(k, 30, 8, 0, k, 10)) for k in range(10)]
    second = [schedule(Clock(10 + k, 30, 8, 1, k, 10)) for k in range(10)]
    assert first == second
    assert second[0] == pytest.approx(1 / 3)


@pytest.mark.parametrize("schedule", [Constant(2), Cosine(3, 0.5), Linear(4, 2.0)], ids=repr)
def test_choices_come_back_from_plain_data(schedule):
    assert Schedule.parse(schedule.dump()) == schedule


def test_the_trainer_applies_it_and_each_phase_starts_it_anew(tmp_path):
    schedule = Cosine(warmup=2, end=0.1)
    trainer(Phased(), tmp_path, config(schedule=schedule)).fit()
    rates = [line["rate"] for line in read_log(tmp_path / "log.jsonl")]
    one = [at(schedule, step, 4) for step in range(4)]
    assert rates == pytest.approx(one * 3, rel=1e-5)
    one_phase = tmp_path / "single"
    trainer(Single(), one_phase, config(schedule=schedule)).fit()
    rates = [line["rate"] for line in read_log(one_phase / "log.jsonl")]
    assert rates == pytest.approx([at(schedule, step, 12) for step in range(12)], rel=1e-5)


def test_the_rate_of_each_network_is_its_own_times_the_factor():
    chosen = config(
        schedule=Linear(warmup=0, end=0.0), optimizers={"fake": Sgd(lr=0.2)}, optimizer=Sgd(lr=0.1)
    )
    one, rates = trainer(Phased(), None, chosen), []

    def look(seen):
        rates.append(
            [one.state.optimizers[name].param_groups[0]["lr"] for name in ("student", "fake")]
        )

    one.fit(look)
    factors = [1 - k / 4 for k in range(4)] * 3
    assert [r for pair in rates for r in pair] == pytest.approx(
        [lr * f for f in factors for lr in (0.1, 0.2)]
    )


def test_the_clock_counts_phases():
    one = trainer(Phased(), None, config(steps=10))  # phases begin at 0, 3 and 6
    found = [one.clock(step) for step in range(10)]
    assert [c.phase for c in found] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert [c.phase_step for c in found] == [0, 1, 2, 0, 1, 2, 0, 1, 2, 3]
    assert [c.phase_steps for c in found] == [3, 3, 3, 3, 3, 3, 4, 4, 4, 4]
    assert [c.progress for c in found] == pytest.approx([k / 10 for k in range(10)])
    assert all((c.steps, c.batch) == (10, 8) for c in found)
