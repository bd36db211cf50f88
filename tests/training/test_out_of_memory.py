"""Where memory runs out an update is repeated, on the same noise, in micro-batches of half the size
(R18).
"""

import math

import pytest
import torch
from tests.cli.conftest import TEACHER
from tests.training.shortage import DESCENT, ERRORS, OTHERS, PLACES, STEPS, Shortage, halved_at
from tests.training.tiny import (
    Phased,
    Rhythm,
    Single,
    StopError,
    assert_same,
    config,
    part,
    real,
    state,
    stop_at,
    trainer,
)

from fewstep.cli.main import main
from fewstep.methods.dmd2 import DMD2
from fewstep.training.checkpoint import Checkpoints
from fewstep.training.optimizers import AdamW, RAdam, Sgd


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("method", "update"),
    [(Single(), 0), (Rhythm(), 0), (Rhythm(), 1), (Rhythm(), 2)],
    ids=["single", "first of fake", "second of fake", "student"],
)
def test_an_update_that_ran_out_of_memory_leaves_no_trace_but_its_halves(
    monkeypatch, place, method, update
):
    """Bit by bit, with dropout: half gradients, states, counters, masks and draws of the first try
    are forgotten.
    """
    changes = {"micro_batch": 6} if place == "a later part" else {}
    one = trainer(method, None, config(**DESCENT, **changes))
    shortage = Shortage(one, monkeypatch, place, update=update)
    one.fit()
    assert shortage.left == 0
    assert one.step.micro == (3 if changes else 4)
    asked = [
        (number, rows) for step, at, number, rows in shortage.asked if (step, at) == (2, update)
    ]
    assert len({number for number, _ in asked}) == 1  # the same batch again
    if changes:
        return
    assert_same(state(one), halved_at(method, 2, update))


@pytest.mark.parametrize(("place", "error"), list(zip(PLACES, [*ERRORS.values()] * 2)), ids=PLACES)
@pytest.mark.parametrize(
    "method", [Single(dropout=0.0), Phased(dropout=0.0)], ids=["single", "two optimizers"]
)
def test_the_run_ends_where_one_without_the_shortage_does(monkeypatch, place, error, method):
    """The same batch and noise in smaller parts: the difference is rounding (plain descent does not
    blow it up).
    """
    changes = {**DESCENT, "micro_batch": 6 if place == "a later part" else 0}
    straight, one = (trainer(method, None, config(**changes)) for _ in range(2))
    begun = state(straight)
    straight.fit()
    Shortage(one, monkeypatch, place, error=error, step=3)
    one.fit()
    found, expected = state(one), state(straight)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6)
    assert (
        max(
            (value - begun[key]).abs().max() for key, value in part(expected, "net/student").items()
        )
        > 0.01
    )
    assert one.batches == straight.batches
    assert one.skips.flags.sum() == 0  # no skipped step


def small_memory(one, rows):
    """Every pass of more rows than that fails, as on a device; returns the sizes that were
    tried.
    """
    tried = []
    for module in one.state.modules.values():

        def check(module, inputs):
            tried.append(len(inputs[0]))
            if len(inputs[0]) > rows:
                raise ERRORS["gpu"]

        module.register_forward_pre_hook(check)
    return tried


@pytest.mark.parametrize("method", [Single(), Rhythm()], ids=["single", "two optimizers"])
@pytest.mark.parametrize(("rows", "micro"), [(3, 2), (1, 1)])
def test_the_largest_half_that_fits_is_found_in_the_first_update(method, rows, micro):
    """From there the run is bit by bit the one that was told its micro-batch."""
    told, one = (trainer(method, None, config(steps=3, micro_batch=size)) for size in (micro, 0))
    tried = small_memory(one, rows)
    one.fit()
    told.fit()
    assert one.step.micro == micro
    assert_same(state(one), state(told))
    assert [size for size in tried if size > rows] == [8, 4, 2][: int(math.log2(8 / micro))]


def test_micro_batches_that_do_not_divide_are_halved_downwards():
    one = trainer(Single(), None, config(batch=7, steps=2))
    small_memory(one, 1)
    one.fit()
    assert one.step.micro == 1
    one = trainer(Single(), None, config(batch=7, micro_batch=5, steps=2))
    small_memory(one, 2)
    one.fit()
    assert one.step.micro == 2


def test_a_real_method_with_a_discriminator(monkeypatch):
    """Distribution matching, in each of its updates: the same end but for rounding."""
    method, chosen = DMD2(fake_steps=2), config(steps=2, optimizer=Sgd(lr=0.1))
    straight = real(method, None, chosen)
    straight.fit()
    for update, place in ((0, "backward"), (1, "step"), (2, "a later part")):
        with monkeypatch.context() as patch:
            # Of two optimizers that step together only the first may fail: see the next tests.
            one = real(
                method,
                None,
                config(steps=2, optimizer=Sgd(lr=0.1), micro_batch=6 if update == 2 else 0),
            )
            shortage = Shortage(one, patch, place, step=1, update=update)
            one.fit()
            assert shortage.left == 0
            for key, value in state(straight).items():
                torch.testing.assert_close(state(one)[key], value, rtol=0, atol=2e-6)


# Remembered


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_resumed_run_remembers_what_memory_allowed(folder, stop):
    """The shortage is in step 3: saved before it the resumed run meets it
    again, behind it no more.
    """
    changes = {**DESCENT, "save_every": stop}
    straight = trainer(Rhythm(), None, config(**changes))
    short_from(straight, 3)
    straight.fit()
    one = trainer(Rhythm(), folder, config(**changes))
    short_from(one, 3)
    with pytest.raises(StopError):
        one.fit(stop_at(stop))
    setting = Checkpoints(folder / "checkpoints").load(stop).facts["setting"]
    assert setting["micro_batch"] == (
        4 if stop > 3 else 0
    )  # 0: all rows of a process, however many processes
    again = trainer(Rhythm(), folder, config(**changes))
    failed, said = short_from(again, 3), []
    again.fit(say=said.append)
    assert said == [f"goes on behind step {stop} of {again.config.steps}"]  # in the same setting
    assert len(failed) == (stop <= 3)
    assert again.step.micro == 4
    assert_same(state(again), state(straight))


def short_from(one, step):
    """From that step on a pass of more than 4 rows fails. Returns the failures."""
    failed, read = [], one.step.data

    def reading(number, rows, draws):
        if draws.step >= step and len(rows) > 4:
            failed.append(draws.step)
            raise ERRORS["cpu"]
        return read(number, rows, draws)

    one.step.data, reading.fingerprint, reading.ids = reading, read.fingerprint, read.ids
    return failed


def test_a_micro_batch_that_was_asked_for_is_tried_again(folder):
    """The user may have more memory now; without it the run ends with the
    same bits all the same.
    """
    changes = {**DESCENT, "save_every": 4, "micro_batch": 8}
    straight = trainer(Single(), None, config(**changes))
    short_from(straight, 2)
    straight.fit()
    one = trainer(Single(), folder, config(**changes))
    short_from(one, 2)
    with pytest.raises(StopError):
        one.fit(stop_at(4))
    again = trainer(Single(), folder, config(**changes))
    failed = short_from(again, 2)
    again.fit(say=lambda line: None)
    assert failed == [4]
    assert_same(state(again), state(straight))


# The end


@pytest.mark.parametrize(
    ("method", "error"),
    list(zip([Single(), Rhythm(), Phased()], ERRORS.values())),
    ids=["single", "two optimizers", "phases"],
)
def test_with_one_row_left_the_run_ends_with_the_error(folder, method, error):
    one = trainer(method, folder, config(save_every=2))
    read, tried, states = one.step.data, [], []

    def reading(number, rows, draws):
        if draws.step >= 3:
            tried.append(len(rows))
            raise error
        return read(number, rows, draws)

    one.step.data, reading.fingerprint, reading.ids = reading, read.fingerprint, read.ids
    with pytest.raises(type(error)) as ended:
        one.fit(lambda seen: states.append(state(one)))
    assert ended.value is error
    assert tried == [8, 4, 2, 1]
    assert len(states) == 3
    found = state(one)
    for key, value in part(states[-1], "net", "ema", "optimizer").items():
        assert torch.equal(found[key], value), key  # nothing of the step that could not be done
    assert Checkpoints(folder / "checkpoints").newest() == 2


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_the_command_line_ends_with_code_5_and_advice(tmp_path, monkeypatch, capsys, error):
    monkeypatch.chdir(tmp_path)
    tried = []

    def backward(self, update, clock, index, number):
        tried.append(self.micro)
        raise error

    monkeypatch.setattr("fewstep.training.step.Step.backward", backward)
    with pytest.raises(SystemExit) as ended:
        main([*TEACHER, "name=tiny"])
    assert ended.value.code == 5
    assert tried == [8, 4, 2, 1]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: out of memory")
    assert "micro_batch" in lines[0]


@pytest.mark.parametrize(("place", "error"), list(zip(PLACES, [*OTHERS, *OTHERS])), ids=PLACES)
def test_another_error_is_not_taken_for_it(monkeypatch, place, error):
    """Not even a ValueError that says so: memory has three types of its own."""
    one = trainer(
        Single(), None, config(**DESCENT, micro_batch=6 if place == "a later part" else 0)
    )
    shortage = Shortage(one, monkeypatch, place, error=error)
    before = one.step.micro
    with pytest.raises(type(error)) as ended:
        one.fit()
    assert ended.value is error
    assert one.step.micro == before
    assert len([1 for step, *_ in shortage.asked if step == 2]) <= 2


def test_an_update_is_not_repeated_once_a_network_has_moved(monkeypatch):
    """Of fake and head, which step together, fake has: a second time would move it twice. The run
    ends.
    """
    import fewstep.training.step as module

    one = real(DMD2(fake_steps=1), None, config(steps=3))
    inner, calls = module.guarded_step, []

    def second_fails(optimizer, bad):
        calls.append(optimizer)
        if len(calls) == 2:
            raise ERRORS["gpu"]
        inner(optimizer, bad)

    monkeypatch.setattr(module, "guarded_step", second_fails)
    with pytest.raises(torch.OutOfMemoryError):
        one.fit()
    assert calls == [one.state.optimizers["fake"], one.state.optimizers["head"]]
    assert one.step.micro == 8


# Inside an optimizer's step


def test_a_step_that_fails_in_its_middle_is_taken_back(monkeypatch):
    """RAdam changes its moments and counter before it allocates the root of the second moment."""
    changes = {"steps": 8, "optimizer": RAdam(lr=1e-2)}
    straight, one = (trainer(Single(dropout=0.0), None, config(**changes)) for _ in range(2))
    straight.fit()
    root, left = torch._foreach_sqrt, [1]

    def fails_once(*arguments):
        if left:
            left.pop()
            raise ERRORS["cpu"]
        return root(*arguments)

    monkeypatch.setattr(torch, "_foreach_sqrt", fails_once)
    one.fit()
    assert not left
    for key, value in part(state(straight), "optimizer").items():
        torch.testing.assert_close(state(one)[key], value, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "call"), [(AdamW(lr=1e-2), 2), (RAdam(lr=1e-2), 6)], ids=["adamw", "radam"]
)
def test_the_first_step_finds_no_memory_for_the_optimizers_state(monkeypatch, spec, call):
    """The most likely moment: behind the first backward pass, twice the weights are allocated,
    tensor by tensor.

    call: the tensor of zeros that is one too many (RAdam's guard makes one for each of the four
    gradients before).
    """
    import fewstep.training.step as module

    changes = {"steps": 3, "optimizer": spec}
    straight, one = (trainer(Single(dropout=0.0), None, config(**changes)) for _ in range(2))
    straight.fit()
    inner, zeros_like, allocated = module.guarded_step, torch.zeros_like, []

    def one_fails(*arguments, **options):
        allocated.append(1)
        if len(allocated) == call:
            raise ERRORS["cpu"]
        return zeros_like(*arguments, **options)

    def step(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "zeros_like", one_fails)
            inner(*arguments)

    monkeypatch.setattr(module, "guarded_step", step)
    one.fit()
    assert one.step.micro == 4
    for key, value in state(straight).items():
        torch.testing.assert_close(state(one)[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("place", ["step"])
def test_a_repeated_update_counts_once_for_the_loss_scale(monkeypatch, place):
    one = trainer(Single(), None, config(**DESCENT, precision="fp16"))
    Shortage(one, monkeypatch, place)
    one.fit()
    assert int(one.state.scales["student"].good) == STEPS


@pytest.mark.parametrize("place", ["loss", "backward", "clip"])
def test_the_loss_scale_is_the_same_where_the_shortage_came_before_the_step(monkeypatch, place):
    one = trainer(Single(), None, config(**DESCENT, precision="fp16"))
    Shortage(one, monkeypatch, place)
    one.fit()
    assert int(one.state.scales["student"].good) == STEPS
    assert_same(state(one), halved_at(Single(), 2, 0, precision="fp16"))
