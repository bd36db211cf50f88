"""What counts as a jump, and a run that goes back behind one."""

import math
import statistics

import pytest
import torch
from tests.training.tiny import (
    Phased,
    Single,
    StopError,
    assert_same,
    config,
    data,
    state,
    trainer,
)

from fewstep.learning.method import Clock
from fewstep.learning.schedules import Constant
from fewstep.training.log import read_log
from fewstep.training.observers import Reading
from fewstep.training.processes import World
from fewstep.training.seen import Seen
from fewstep.training.spikes import LEAST, WINDOW, Spikes, highest

CLEAN = {"steps": 60, "log_every": 5, "save_every": 10, "schedule": Constant()}


class Spoilt:
    """Batches as ever, but these are a thousand times too bright."""

    def __init__(self, *numbers):
        self.numbers, self.clean, self.asked = numbers, data(), []
        self.fingerprint = self.clean.fingerprint
        self.ids, self.dataset = self.clean.ids, self.clean.dataset

    def __call__(self, number, rows, draws):
        self.asked.append((draws.step, number))
        batch = self.clean(number, rows, draws)
        if number in self.numbers:
            batch.x0.mul_(1000.0)
        return batch


def losses(numbers, name="loss of student"):
    """Looks at a run of these losses, read every step; the steps that jumped, as the log has."""
    spikes, said = Spikes(World()), []
    look = spikes.watch(Reading(1, 0), lambda seen, words: said.append(words))
    for step, number in enumerate(numbers):
        seen = Seen(Clock(step, len(numbers), 8, 0, step, len(numbers)), {}, 0, dict)
        seen.losses = {name.removeprefix("loss of "): torch.tensor(number)}
        if name.startswith("gradient"):
            seen.losses, seen.numbers["norm.student"] = {}, torch.tensor(number)
        look(seen)
    return said


def test_the_limit_of_a_loss_is_eight_robust_deviations():
    """Of its logarithm: numbers that scatter by powers are ordinary."""
    logs = torch.randn(WINDOW, generator=torch.Generator().manual_seed(0)).mul(0.3).tolist()
    numbers = [5 * math.exp(log) for log in logs]
    middle = statistics.median(logs)
    spread = 1.4826 * statistics.median(abs(log - middle) for log in logs)
    limit = highest("loss of student", numbers)
    assert limit == pytest.approx(5 * math.exp(middle + 8 * spread))
    assert spread == pytest.approx(0.3, abs=0.05)  # a standard deviation of ordinary numbers
    for more, jumps in ((0.99, 0), (1.01, 1)):
        assert len(losses([*numbers, more * limit])) == jumps


def test_losses_that_are_not_all_above_0_are_compared_as_they_are():
    numbers = torch.randn(WINDOW, generator=torch.Generator().manual_seed(0)).tolist()
    middle = statistics.median(numbers)
    spread = 1.4826 * statistics.median(abs(n - middle) for n in numbers)
    assert highest("loss of student", numbers) == pytest.approx(middle + 8 * spread)


def test_losses_of_any_size_have_a_limit():
    assert highest("loss of x", [1e-300, 1e300] * 30) == pytest.approx(math.exp(700))


def test_skewed_losses_jump_seldom():
    """As those of consistency distillation are at first: five times the usual one is ordinary."""
    logs = torch.randn(20000, generator=torch.Generator().manual_seed(2)).mul(0.6)
    assert losses(logs.exp().tolist()) == []
    assert len(losses([*logs[:1000].exp().tolist(), 500.0])) == 1


def test_a_loss_that_does_not_move_may_move_a_little():
    assert highest("loss of x", [2.0] * 50) == pytest.approx(2 * math.exp(0.4))
    assert highest("loss of x", [-2.0] * 50) == pytest.approx(-1.2)
    assert highest("loss of x", [0.0] * 50) == 0


def test_the_limit_of_a_norm_is_twenty_times_the_usual_one():
    assert losses([0.5, 0.7] * 20 + [11.9], "gradient norm of student") == []
    (said,) = losses([0.5, 0.7] * 20 + [12.1], "gradient norm of student")
    assert said == "step 41: the gradient norm of student is 12.1, the usual is 0.6"


def test_few_numbers_judge_nothing():
    assert losses([1.0] * (LEAST - 1) + [1e6]) == []
    assert len(losses([1.0] * LEAST + [1e6])) == 1


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_not_finite_is_left_out_elsewhere_and_no_spike(number):
    assert losses([1.0] * 30 + [number] * 3 + [1.0] * 30) == []


def test_a_level_that_stays_is_said_for_half_a_window_at_most():
    assert len(losses([1.0, 1.1] * 100 + [5.0, 5.1] * 200)) <= WINDOW // 2


def test_falling_losses_and_ordinary_noise_are_no_jumps():
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(2000, generator=generator)
    assert losses((5 * torch.exp(-torch.arange(2000) / 300) + 1 + 0.3 * noise).tolist()) == []


def test_a_run_tells_and_counts_its_jumps(folder):
    said = []
    one = trainer(Single(), folder, config(**CLEAN), Spoilt(43))
    one.fit(say=said.append)
    (line,) = said
    assert line.startswith("warning: step 44: the loss of student is ")
    counted = [line.get("spikes", 0.0) for line in read_log(folder / "log.jsonl")]
    assert counted == [float(step == 45) for step in range(1, 61)]
    assert one.batches == 60
    plain = trainer(Single(), None, config(**CLEAN), Spoilt(43))
    said.clear()
    plain.fit(say=said.append)  # without a folder too
    assert said == [line]
    assert_same(state(plain), state(one))


def test_a_run_goes_back_and_on_with_other_batches(folder):
    """To the checkpoint of step 40; of the batches 40 to 44, which were drawn before the log was
    read, none comes again. Bit by bit as a run that had skipped them by itself.
    """
    said, stream = [], Spoilt(43)
    one = trainer(Single(), folder, config(**CLEAN, spikes="roll_back"), stream)
    one.fit(say=said.append)
    (line,) = said
    assert line.startswith("warning: step 44: the loss of student is ")
    assert line.endswith("; back to step 40, and on with other batches (1 of 3 times)")
    assert stream.asked == [(i, i) for i in range(45)] + [(i, i + 5) for i in range(40, 60)]
    lines = read_log(folder / "log.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 61))
    other = trainer(Single(), None, config(**CLEAN))
    for seen in other.steps():
        if seen.done == 40:
            other.batches += 5
    expected = state(other)
    found = state(one)
    expected.pop("flags"), found.pop("flags")
    assert_same(found, expected)
    # As good as a run that never met the batch.
    straight = trainer(Single(), folder.with_name("clean"), config(**CLEAN))
    straight.fit()
    ends = []
    for place in (folder, folder.with_name("clean")):
        last = read_log(place / "log.jsonl")[-20:]
        ends.append(statistics.fmean(line["student"] for line in last))
    assert ends[0] == pytest.approx(ends[1], rel=0.05)


def test_it_goes_back_three_times_at_most(folder):
    said = []
    bad = Spoilt(*range(43, 200))
    one = trainer(Single(), folder, config(**CLEAN, spikes="roll_back"), bad)
    one.fit(say=said.append)
    back = [line for line in said if "back to step 40" in line]
    assert [line[-14:] for line in back] == [f"({n} of 3 times)" for n in (1, 2, 3)]
    assert len(said) > 3
    assert one.roll_backs == 3


def test_without_a_checkpoint_it_only_tells(folder):
    said = []
    chosen = config(**{**CLEAN, "save_every": 0}, spikes="roll_back")
    trainer(Single(), folder, chosen, Spoilt(43)).fit(say=said.append)
    assert [line[:17] for line in said] == ["warning: step 44:"]


@pytest.mark.parametrize("stop", [31, 40, 42, 47])
def test_stopped_and_resumed_it_goes_back_as_a_straight_run_does(folder, stop):
    """The numbers that steps are compared with, and how often it went back, are in checkpoints."""
    chosen = config(**CLEAN, spikes="roll_back")
    straight = trainer(Single(), folder.with_name("x"), chosen, Spoilt(43))
    straight.fit(say=lambda line: None)
    seen = []

    def stop_later(look):
        seen.append(look.done)
        if look.done == stop and seen.count(stop) == 1:
            raise StopError

    one = trainer(Single(), folder, chosen, Spoilt(43))
    with pytest.raises(StopError):
        one.fit(stop_later, say=lambda line: None)
    again = trainer(Single(), folder, chosen, Spoilt(43))
    again.fit(say=lambda line: None)
    assert_same(state(again), state(straight))
    assert again.roll_backs == 1


def test_a_phase_is_compared_with_itself():
    """Phases begin at 0, 30 and 60: behind the border too few steps are known."""
    said = []
    chosen = config(**{**CLEAN, "steps": 90, "log_every": 1})
    trainer(Phased(), None, chosen, Spoilt(3 * 35 + 2)).fit(say=said.append)
    assert said == []
    trainer(Phased(), None, chosen, Spoilt(3 * 27 + 2)).fit(say=said.append)
    assert any(line.startswith("warning: step 28: ") for line in said)


def test_numbers_that_are_compared_are_of_the_last_steps(folder):
    one = trainer(Single(), folder, config(**{**CLEAN, "steps": 240}))
    one.fit()
    past = one.spikes.past
    assert sorted(past) == ["gradient norm of student", "loss of student"]
    lines = read_log(folder / "log.jsonl")[-WINDOW:]
    assert list(past["loss of student"]) == pytest.approx(
        [line["student"] for line in lines], rel=1e-5
    )
