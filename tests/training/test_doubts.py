"""Options that were made for a longer run are said with their figure."""

import pytest
from tests.training.tiny import Phased, Single, config, trainer

from fewstep.learning.schedules import Constant, Cosine, Linear
from fewstep.training.doubts import doubts, shortest


@pytest.mark.parametrize("ema", [(0.999,), (0.9, 0.9999), (0.0,)])
@pytest.mark.parametrize("steps", [1, 2, 20, 5000])
def test_the_default_average_is_in_no_doubt_at_any_length(ema, steps):
    assert doubts(config(ema=ema, schedule=Constant()), (0, steps)) == []


def test_a_plain_average_says_what_is_left_of_the_first_weights():
    chosen = config(ema=(0.999, 0.9, 0.0), ema_warmup=False, schedule=Constant())
    (said,) = doubts(chosen, (0, 300))
    assert said.startswith("74% of the average 0.999 will be weights from before the run")
    assert "trainer.ema_warmup=true" in said
    assert [one[:3] for one in doubts(chosen, (0, 20))] == ["98%", "12%"]
    assert doubts(chosen, (0, 4700)) == []  # 0.9 %


def test_the_shortest_phase_counts():
    chosen = config(ema=(0.99,), ema_warmup=False, schedule=Constant())
    assert shortest((0, 400, 500, 900)) == 100
    (said,) = doubts(chosen, (0, 400, 500, 900))
    assert said.startswith("37% of the average 0.99 will be weights from before the phase, which")


@pytest.mark.parametrize("kind", [Constant, Cosine, Linear])
def test_a_rate_that_never_rises_to_itself(kind):
    (said,) = doubts(config(schedule=kind(warmup=200)), (0, 20))
    assert said == (
        "the learning rate ends at 10% of itself: trainer.schedule.warmup=200 is longer than the "
        "run of 20 steps"
    )
    (said,) = doubts(config(schedule=kind(warmup=200)), (0, 1000, 1100))
    assert "ends at 50% of itself" in said
    assert "the phase of 100 steps" in said
    (said,) = doubts(config(schedule=kind(warmup=200)), (0, 201))
    assert said.startswith("the learning rate is full for 1 of 201 steps of a run")
    assert doubts(config(schedule=kind(warmup=200)), (0, 300)) == []


def test_a_run_says_its_doubts_when_it_begins():
    said = []
    chosen = config(ema=(0.999,), ema_warmup=False, schedule=Constant(warmup=6))
    trainer(Single(), None, chosen).fit(say=said.append)
    assert [line[:17] for line in said] == ["warning: 99% of t"]
    said.clear()
    trainer(Phased(), None, config(schedule=Constant(warmup=5))).fit(say=said.append)
    assert [line[:42] for line in said] == ["warning: the learning rate ends at 80% of "]
