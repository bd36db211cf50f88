"""The loss scale of fp16: torch's rule, and a run that it does not change."""

import dataclasses
import math
import random

import pytest
import torch
from tests.training.tiny import (
    Rhythm,
    Single,
    StopError,
    assert_same,
    bits,
    config,
    cut,
    part,
    real,
    state,
    stop_at,
    trainer,
)
from torch import nn

from fewstep.methods.dmd2 import DMD2
from fewstep.methods.progressive import Progressive
from fewstep.training.checkpoint import Checkpoints
from fewstep.training.optimizers import AdamW, RAdam, Sgd
from fewstep.training.precision import LossScale

CPU = torch.device("cpu")


def followed(pattern, interval):
    """(scale, good updates in a row) behind each update, of ours and of torch's."""
    ours, theirs = (
        LossScale(CPU),
        torch.amp.GradScaler("cpu", init_scale=65536.0, growth_interval=interval),
    )
    ours.patience = interval
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    found = []
    for bad in pattern:
        assert theirs.scale(torch.ones(())).item() == ours.scale.item()
        optimizer.zero_grad()
        theirs.scale(weight.sum() * (math.inf if bad else 1.0)).backward()
        theirs.step(optimizer)
        theirs.update()
        ours.note(torch.tensor(bad))
        found.append(
            (
                (ours.scale.item(), int(ours.good)),
                (theirs.get_scale(), theirs._get_growth_tracker()),
            )
        )
    return found


@pytest.mark.parametrize("interval", [1, 2, 3, 7])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_scale_moves_as_torchs_does(interval, share):
    rng = random.Random(f"{interval} {share}")
    found = followed([rng.random() < share for _ in range(100)], interval)
    assert [ours for ours, _ in found] == [theirs for _, theirs in found]
    assert len({scale for (scale, _), _ in found}) > 3


def test_the_scale_begins_and_waits_as_torchs_does():
    assert LossScale(CPU).scale.item() == torch.amp.GradScaler("cpu").get_scale()
    assert LossScale.patience == torch.amp.GradScaler("cpu").get_growth_interval()


def test_the_scale_does_not_grow_beyond_all_numbers():
    found = followed([False] * 120, 1)
    assert [ours for ours, _ in found] == [theirs for _, theirs in found]


@pytest.mark.parametrize("scaled", ["fp16", "fp16_teacher"])
@pytest.mark.parametrize("method", [Single(), Rhythm()], ids=["one optimizer", "two"])
def test_the_scale_alone_changes_no_bit(method, scaled, monkeypatch):
    """A power of two, multiplied and divided again: with networks in fp32 the run is that without a
    scale.

    fp16_teacher has one for losses whose gradient passes through a frozen network, such as a
    discriminator's.
    """
    monkeypatch.setattr(LossScale, "patience", 3)
    ends = []
    for precision in ("fp32", scaled):
        one = trainer(method, None, config(precision=precision))
        one.fit()
        ends.append(state(one))
    assert_same(*ends)
    assert {group: scale.scale.item() for group, scale in one.state.scales.items()} == {
        group: 65536.0 * 2 ** (12 * (2 if group == "fake" else 1) // 3)
        for group in one.state.roles.trains
    }


@pytest.mark.parametrize("update", [0, 1, 2])
def test_each_group_of_networks_has_a_scale_of_its_own(update):
    """An overflow halves the scale of the networks that the update trains."""
    one = trainer(Rhythm(poison=(4,), poisoned_update=update), None, config(precision="fp16"))
    one.fit()
    bad, good = ("student", "fake") if update == 2 else ("fake", "student")
    assert {group: scale.scale.item() for group, scale in one.state.scales.items()} == {
        bad: 32768.0,
        good: 65536.0,
    }
    behind = 7 if bad == "student" else 15 - update  # updates since the bad one
    assert int(one.state.scales[bad].good) == behind
    assert int(one.state.scales[good].good) == (12 if good == "student" else 24)


def scales(one):
    return {
        group: (bits(scale.scale), bits(scale.good)) for group, scale in one.state.scales.items()
    }


@pytest.mark.parametrize("step", [1, 4, 5, 6, 9])
def test_a_run_with_scales_that_was_cut_ends_with_the_same_bits(folder, monkeypatch, step):
    """Bad updates in steps 4 and 5; patience 3, so that the scales also grow, behind a cut and
    before it.
    """
    monkeypatch.setattr(LossScale, "patience", 3)
    method = Rhythm(poison=(4, 5), poisoned_update=1)
    straight = trainer(method, None, config(precision="fp16"))
    straight.fit()
    cut(method, folder, step, precision="fp16")
    store = Checkpoints(folder / "checkpoints")
    assert sorted(store.load(step).tensors["scale"]) == [
        "fake/good",
        "fake/scale",
        "student/good",
        "student/scale",
    ]
    again = trainer(method, folder, config(precision="fp16"))
    again.fit()
    assert_same(state(again), state(straight))
    assert scales(again) == scales(straight)
    assert len(set(scales(straight).values())) == 2


@pytest.mark.parametrize(
    "method", [DMD2(fake_steps=1), Progressive(start=8, end=2)], ids=["dmd2", "progressive"]
)
def test_a_run_in_fp16_that_was_cut_ends_with_the_same_bits(folder, monkeypatch, method):
    """Real autocast: what a checkpoint rounds or leaves out would show in the next product."""
    monkeypatch.setattr(LossScale, "patience", 2)
    chosen = config(steps=4, precision="fp16", max_skips=100)
    straight = real(method, None, chosen)
    straight.fit()
    with pytest.raises(StopError):
        real(method, folder, dataclasses.replace(chosen, save_every=2)).fit(stop_at(2))
    again = real(method, folder, chosen)
    again.fit()
    assert_same(state(again), state(straight))
    assert scales(again) == scales(straight)
    other = real(method, None, config(steps=4))
    other.fit()
    assert any((state(other)[k] != v).any() for k, v in part(state(again), "net/student").items())


def test_an_overflow_skips_the_step_and_halves_the_scale_until_it_fits():
    """Begun far too high: fp16's gradients are infinite, the weights wait, and nothing is lost but
    steps.
    """
    chosen = config(steps=24, precision="fp16", optimizer=Sgd(lr=1e-3), max_skips=99, clip=0.0)
    one = real(Progressive(start=4, end=2), None, chosen)
    one.state.scales["student"] = LossScale(CPU)
    one.state.scales["student"].scale.fill_(2.0**30)
    seen = [(2.0**30, state(one), False)]

    def look(step):
        scale, bad = one.state.scales["student"].scale, one.skips.flags[step.done - 1]
        seen.append((scale.item(), state(one), bool(bad)))

    one.fit(look)
    for (scale, before, _), (scale_after, after, bad) in zip(seen, seen[1:]):
        moved = any(bits(after[k]) != bits(v) for k, v in part(before, "net/student").items())
        assert moved is not bad
        assert scale_after == scale * (0.5 if bad else 1)
        assert all(v.isfinite().all() for v in after.values())
    bad = [skipped for _, _, skipped in seen[1:]]
    assert bad[0]
    assert 5 <= sum(bad) <= 20
    assert not any(bad[-3:])


@pytest.mark.parametrize(
    "spec", [AdamW(lr=1e-3), RAdam(lr=1e-3), Sgd(lr=1e-2)], ids=lambda s: type(s).__name__
)
def test_unscaled_gradients_are_those_that_are_clipped_and_stepped(spec):
    """With a limit far below the scaled norm the step is that of fp32: the scale is divided out
    before.
    """
    ends = []
    for precision in ("fp32", "fp16"):
        one = trainer(
            Single(dropout=0.0),
            None,
            config(steps=4, optimizer=spec, clip=1e-3, precision=precision),
        )
        one.fit()
        ends.append(state(one))
    assert_same(*ends)
