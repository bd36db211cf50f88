"""Every signal that a terminal or a scheduler sends ends a run with a checkpoint; every end is
written to its status.
"""

import json
import shutil
import signal
import threading

import pytest
import torch
from tests.training.test_resume import Ringing, tiny_run
from tests.training.tiny import Single, StopError, assert_same, config, state, stop_at, trainer

from fewstep.run import distil
from fewstep.training.checkpoint import Checkpoints
from fewstep.training.signals import Signals, StoppedError

ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture
def handlers():
    """What the signals do when no run is there; they must have it again behind it."""
    found = {}

    def heard(number, frame):
        found[number] = found.get(number, 0) + 1

    before = {one: signal.signal(one, heard) for one in ALL}
    yield found
    assert [signal.getsignal(one) for one in ALL] == [heard] * len(ALL)
    for one, handler in before.items():
        signal.signal(one, handler)


def status(folder):
    """Without what no two runs have alike."""
    found = json.loads((folder / "status.json").read_text())
    assert found.pop("seconds") >= 0
    assert found.pop("threads") == torch.get_num_threads()
    return found


@pytest.mark.parametrize(
    ("number", "options", "code"),
    [
        (signal.SIGHUP, {}, 129),
        (signal.SIGINT, {}, 130),
        (signal.SIGTERM, {}, 143),
        (signal.SIGUSR1, {"stop_signals": ("SIGUSR1",)}, 138),
        (signal.SIGUSR2, {"stop_signals": ("SIGUSR1", "SIGUSR2")}, 140),
    ],
)
def test_each_ends_the_run_behind_its_step(folder, handlers, number, options, code):
    one = trainer(Single(), folder, config(**options), Ringing(4, number))
    with pytest.raises(SystemExit) as error:
        one.fit(say=lambda _: None)
    assert error.value.code == code
    assert Checkpoints(folder / "checkpoints").newest() == 5
    assert status(folder) == {
        "state": "stopped",
        "step": 5,
        "steps": 12,
        "reason": f"signal {int(number)}",
    }
    assert handlers == {}
    again, straight = trainer(Single(), folder), trainer(Single())
    for run in (again, straight):
        run.fit(say=lambda _: None)
    assert_same(state(again), state(straight))


def test_those_that_nobody_named_are_let_alone(folder, handlers):
    one = trainer(Single(), folder, config(), Ringing(4, signal.SIGUSR1, signal.SIGUSR2))
    one.fit(say=lambda _: None)
    assert handlers == {signal.SIGUSR1: 1, signal.SIGUSR2: 1}
    assert status(folder)["state"] == "trained"


def test_a_hang_up_that_is_ignored_ends_nothing(folder):
    """As nohup does."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        trainer(Single(), folder, stream=Ringing(4, signal.SIGHUP)).fit(say=lambda _: None)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert status(folder)["state"] == "trained"


def test_a_second_one_of_any_kind_ends_it_at_once(folder, handlers):
    one = trainer(Single(), folder, stream=Ringing(4, signal.SIGINT, signal.SIGHUP))
    with pytest.raises(SystemExit) as error:
        one.fit(say=lambda _: None)
    assert error.value.code == 129
    assert list((folder / "checkpoints").iterdir()) == []


class Waiting(Ringing):
    """The step with the signal ends when something was said of it."""

    def __call__(self, number, rows, draws):
        found = super().__call__(number, rows, draws)
        if number == 4:
            assert self.heard.wait(10)
        return found


def test_what_a_signal_does_is_said_at_once_and_at_the_end(folder, handlers):
    said, stream = [], Waiting(4, signal.SIGINT)
    stream.heard = threading.Event()

    def say(line):
        if not line.startswith("warning: "):
            said.append(line)
            stream.heard.set()

    with pytest.raises(StoppedError) as error:
        trainer(Single(), folder, stream=stream).fit(say=say)
    assert error.value.code == 130
    assert said == [
        "stopping behind step 5 of 12; a second signal ends the run at once",
        "stopped, with a checkpoint: the same command goes on",
    ]
    said.clear()
    trainer(Single(), folder).fit(say=say)
    assert said == ["goes on behind step 5 of 12"]


def test_one_that_keeps_nothing_says_no_checkpoint(handlers):
    said = []
    with pytest.raises(StoppedError):
        trainer(Single(), None, stream=Ringing(4, signal.SIGINT)).fit(say=said.append)
    assert not any("checkpoint" in line for line in said)


def test_where_nobody_waits_the_first_ends_it(handlers):
    with pytest.raises(SystemExit) as error, Signals(waits=False):
        signal.raise_signal(signal.SIGTERM)
    assert error.value.code == 143
    with Signals(waits=False):
        signal.raise_signal(signal.SIGINT)  # Python's own, a KeyboardInterrupt
    assert handlers == {signal.SIGINT: 1}


def test_a_system_without_a_signal(monkeypatch, handlers):
    number = signal.SIGHUP
    with monkeypatch.context() as patch:
        patch.delattr(signal, "SIGHUP")
        with Signals():
            signal.raise_signal(number)
    assert handlers == {signal.SIGHUP: 1}


# The rest of a run


def ringing(monkeypatch, place, number):
    def ring(*_, **__):
        signal.raise_signal(number)
        raise AssertionError("the run went on")

    monkeypatch.setattr(f"fewstep.run.{place}", ring)


def test_a_signal_while_the_student_is_saved(folder, handlers, monkeypatch):
    with monkeypatch.context() as patch:
        ringing(patch, "save_students", signal.SIGTERM)
        with pytest.raises(SystemExit) as error:
            distil(tiny_run(), folder, progress=False)
    assert error.value.code == 143
    assert status(folder) == {"state": "stopped", "step": 2, "steps": 2, "reason": "signal 15"}
    assert not distil(tiny_run(), folder).already
    assert status(folder)["state"] == "finished"


def test_a_signal_before_a_run_began_leaves_nothing(folder, handlers, monkeypatch):
    ringing(monkeypatch, "lacking", signal.SIGHUP)
    with pytest.raises(SystemExit) as error:
        distil(tiny_run(), folder / "new")
    assert error.value.code == 129
    assert list(folder.iterdir()) == []


def test_a_failed_save(folder, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    run = tiny_run(steps=8, save_every=4)
    with monkeypatch.context() as patch:
        patch.setattr("fewstep.training.checkpoint.sync", full)
        with pytest.raises(OSError, match="No space left"):
            distil(run, folder)
    assert list(folder.rglob(".tmp-*")) == []
    found = status(folder)
    assert (found["state"], found["step"], found["steps"]) == ("failed", 4, 8)
    assert "No space left" in found["reason"]
    distil(run, folder)
    assert status(folder)["state"] == "finished"


def test_no_space_for_a_save(folder, monkeypatch):
    """The log was written before it: the step is known."""
    usage = shutil.disk_usage(folder)._replace(free=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="no space left for a checkpoint"):
        distil(tiny_run(steps=8, save_every=4), folder)
    found = status(folder)
    assert (found["state"], found["step"], found["steps"]) == ("failed", 4, 8)
    assert "no space left for a checkpoint" in found["reason"]


@pytest.mark.parametrize("error", [ValueError("mine"), MemoryError("mine"), KeyboardInterrupt()])
def test_an_error_of_an_observer(folder, error):
    def look(seen):
        raise error

    with pytest.raises(type(error)):
        distil(tiny_run(log_every=1), folder, observers=[look])
    stopped = isinstance(error, KeyboardInterrupt)
    assert status(folder) == {
        "state": "stopped" if stopped else "failed",
        "step": 1,
        "steps": 2,
        "reason": "signal 2" if stopped else "mine",
    }


def test_a_start_that_fails_ends_nothing(folder):
    """What the folder holds stays what it was."""
    with pytest.raises(StopError):
        distil(tiny_run(steps=4), folder, observers=[stop_at(1)])
    before = status(folder)
    with pytest.raises(ValueError, match="quark"):
        distil(tiny_run(steps=4, device="quark"), folder)
    assert status(folder) == before
