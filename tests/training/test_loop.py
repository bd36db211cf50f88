"""The loop yields its steps; what looks on sees the same numbers and leaves the run as it is."""

import itertools
import signal

import pytest
import torch
from tests.training.tiny import Phased, Rhythm, Single, assert_same, config, state, trainer
from torch import Tensor

from fewstep.learning.method import Clock
from fewstep.training.log import read_log
from fewstep.training.observers import Reading
from fewstep.training.seen import Seen


def seen_at(step, steps=12, stop=0):
    return Seen(Clock(step, steps, 8), {}, stop, dict)


def test_each_step_is_shown_once_and_in_order():
    one = trainer(Phased())
    clocks = [seen.clock for seen in one.steps()]
    assert clocks == [one.clock(step) for step in range(12)]


def test_the_loop_alone_trains_as_a_run_does(folder):
    whole, alone = trainer(Rhythm(), folder), trainer(Rhythm())
    whole.fit()
    numbers = [seen.numbers for seen in alone.steps()]
    assert_same(state(alone), state(whole))
    for step, line in zip(numbers, read_log(folder / "log.jsonl")):
        assert {"step", *step} == set(line)
        for key, value in step.items():
            assert line[key] == pytest.approx(float(value), rel=1e-5)


def test_numbers_are_left_on_the_device():
    seen = next(trainer(Single()).steps())
    assert isinstance(seen.numbers["student"], Tensor)
    assert isinstance(seen.numbers["skipped"], Tensor)


def test_whoever_leaves_the_loop_ends_the_training_there():
    one, other = trainer(Single()), trainer(Single())
    for seen in one.steps():
        if seen.done == 5:
            break
    for _ in itertools.islice(other.steps(), 5):
        pass
    assert one.batches == 5
    assert_same(state(one), state(other))


def test_a_loop_may_begin_later():
    assert [seen.clock.step for seen in trainer(Single()).steps(9)] == [9, 10, 11]


def test_the_averaged_copies_are_made_once_a_step_and_let_go():
    one = trainer(Single(), None, config(steps=3))
    made, inner, held = [], one.state.exported, []
    one.state.exported = lambda *words: made.append(words) or inner(*words)
    for seen in one.steps():
        if seen.done != 2:
            first = seen.exported["student"]
            assert seen.exported["student"] is first
            average = one.state.averages["student"][0.9]
            assert all(torch.equal(p, average[k]) for k, p in first.named_parameters())
        held.append(seen)
    assert made == [("student",)] * 2
    assert not any("exported" in vars(seen) for seen in held)


def test_measures_are_in_the_log_and_observers_see_it_written(folder):
    def measure(seen):
        if seen.due(5):
            seen.numbers["mine"] = float(seen.done)

    written = []

    def look(seen):
        assert not seen.lines or seen.lines == read_log(folder / "log.jsonl")[-len(seen.lines) :]
        written.append(len(seen.lines))

    one = trainer(Single(), folder, config(log_every=4, save_every=6))
    one.fit(look, measures=[measure])
    lines = read_log(folder / "log.jsonl")
    assert {line["step"]: line["mine"] for line in lines if "mine" in line} == {
        5: 5,
        10: 10,
        12: 12,
    }
    # Every fourth step, and before each checkpoint.
    assert written == [0, 0, 0, 4, 0, 2, 0, 2, 0, 0, 0, 4]


@pytest.mark.parametrize(
    ("every", "due"), [(0, []), (5, [5, 10, 12]), (12, [12]), (1, list(range(1, 13)))]
)
def test_what_is_due_every_so_often_is_due_at_the_end(every, due):
    assert [step + 1 for step in range(12) if seen_at(step).due(every)] == due


def test_a_signal_is_an_end_that_is_not_the_last_step():
    assert seen_at(4, stop=15).ends
    assert not seen_at(4, stop=15).last
    assert not seen_at(4, stop=15).due(100)
    assert seen_at(11).last
    assert seen_at(11).ends


def test_the_device_is_read_for_the_log_for_checkpoints_and_at_the_end():
    reading = Reading(every=5, saving=4)
    assert [s + 1 for s in range(12) if reading(seen_at(s))] == [4, 5, 8, 10, 12]
    assert [s + 1 for s in range(12) if Reading(5, 0)(seen_at(s))] == [5, 10, 12]
    assert Reading(100, 0)(seen_at(2, stop=2))


def test_the_loop_ends_behind_a_signal_when_the_step_was_looked_at():
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    seen = []

    def look(one):
        seen.append((one.done, one.stop))
        if one.done == 3:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as error:
        trainer(Single()).fit(look)
    assert error.value.code == 143
    assert seen == [(1, 0), (2, 0), (3, 0), (4, 15)]
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
