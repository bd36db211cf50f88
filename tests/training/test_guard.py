"""A loss or gradient that is not finite never reaches weights or optimizer; too many of them end
the run.
"""

import json
import math

import pytest
import torch
from tests.training.tiny import (
    Rhythm,
    Single,
    assert_same,
    bits,
    config,
    data,
    part,
    state,
    trainer,
)
from torch import nn

from fewstep.errors import DivergedError
from fewstep.training.checkpoint import Checkpoints
from fewstep.training.log import read_log
from fewstep.training.optimizers import AdamW, RAdam, Sgd, guarded_step
from fewstep.training.processes import World
from fewstep.training.step import clip

SPECS = [AdamW(lr=1e-2, weight_decay=0.1), RAdam(lr=1e-2, weight_decay=0.1), Sgd(lr=1e-2)]
SPEC = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec).__name__)
GOOD, BAD = torch.tensor(False), torch.tensor(True)


def parameters():
    """The last one never gets a gradient."""
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 2), (3,), (2,))]


def give_gradients(weights, seed, spoilt=None):
    generator = torch.Generator().manual_seed(seed)
    for p in weights[:2]:
        p.grad = torch.randn(p.shape, generator=generator)
    if spoilt is not None:
        weights[0].grad[1, 1] = spoilt


def everything(weights, optimizer):
    found = {f"weight/{i}": p.detach() for i, p in enumerate(weights)}
    for index, values in optimizer.state_dict()["state"].items():
        found |= {f"state/{index}/{k}": v for k, v in values.items() if isinstance(v, torch.Tensor)}
    return {key: value.clone() for key, value in found.items()}


@SPEC
def test_a_good_step_is_the_optimizers_own(spec):
    # Ten steps: RAdam changes its rule at the sixth.
    ours, plain = parameters(), parameters()
    one, other = spec.build(ours), spec.build(plain)
    for seed in range(10):
        give_gradients(ours, seed)
        give_gradients(plain, seed)
        guarded_step(one, GOOD)
        other.step()
        assert_same(everything(ours, one), everything(plain, other), f"step {seed}")


@SPEC
@pytest.mark.parametrize("spoilt", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("steps", [1, 8])
def test_a_bad_step_changes_no_bit(spec, spoilt, steps):
    weights = parameters()
    optimizer = spec.build(weights)
    for seed in range(steps):
        give_gradients(weights, seed)
        guarded_step(optimizer, GOOD)
    before = everything(weights, optimizer)
    for _ in range(3):
        give_gradients(weights, 99, spoilt)
        guarded_step(optimizer, BAD)
    assert_same(everything(weights, optimizer), before)


@SPEC
def test_a_bad_loss_with_finite_gradients_changes_no_bit(spec):
    weights = parameters()
    optimizer = spec.build(weights)
    give_gradients(weights, 0)
    guarded_step(optimizer, GOOD)
    before = everything(weights, optimizer)
    give_gradients(weights, 1)
    guarded_step(optimizer, BAD)
    assert_same(everything(weights, optimizer), before)


@SPEC
def test_behind_a_bad_first_step_the_run_is_as_if_it_had_begun_there(spec):
    ours, plain = parameters(), parameters()
    one, other = spec.build(ours), spec.build(plain)
    give_gradients(ours, 99, math.nan)
    guarded_step(one, BAD)
    assert_same(
        {str(i): p.detach() for i, p in enumerate(ours)},
        {str(i): p.detach() for i, p in enumerate(plain)},
    )
    assert not any(
        value.any() for key, value in everything(ours, one).items() if key.startswith("state")
    )
    for seed in range(8):
        give_gradients(ours, seed)
        give_gradients(plain, seed)
        guarded_step(one, GOOD)
        other.step()
        assert_same(everything(ours, one), everything(plain, other), f"step {seed}")


@SPEC
def test_a_parameter_whose_first_gradient_is_bad_begins_with_the_next_one(spec):
    """A part of a network that is used only later: its counter must not begin in a step that did
    not happen.
    """
    ours, plain = parameters(), parameters()
    one, other = spec.build(ours), spec.build(plain)
    for weights, optimizer in ((ours, one), (plain, other)):
        give_gradients(weights, 0)
        guarded_step(optimizer, GOOD)
    give_gradients(ours, 1, math.nan)
    ours[2].grad = torch.ones(2)
    guarded_step(one, BAD)
    for weights, optimizer in ((ours, one), (plain, other)):
        give_gradients(weights, 2)
        weights[2].grad = torch.ones(2)
        guarded_step(optimizer, GOOD)
    assert_same(everything(ours, one), everything(plain, other))


@pytest.mark.parametrize("limit", [0.1, 1.0, 1e6])
def test_clip_is_torchs(limit):
    ours, plain = parameters(), parameters()
    give_gradients(ours, 3)
    give_gradients(plain, 3)
    norm = clip([p.grad for p in ours[:2]], limit, World())
    expected = nn.utils.clip_grad_norm_(plain, limit)
    assert bits(norm) == bits(expected)
    assert [bits(p.grad) for p in ours[:2]] == [bits(p.grad) for p in plain[:2]]
    assert ours[2].grad is None
    after = torch.cat([p.grad.flatten() for p in ours[:2]]).norm()
    assert after == pytest.approx(min(limit, norm.item()), rel=1e-5)


def test_no_limit_leaves_the_gradients():
    weights = parameters()
    give_gradients(weights, 3)
    before = [bits(p.grad) for p in weights[:2]]
    norm = clip([p.grad for p in weights[:2]], 0.0, World())
    assert [bits(p.grad) for p in weights[:2]] == before
    assert norm == pytest.approx(
        torch.cat([p.grad.flatten() for p in weights[:2]]).norm().item(), rel=1e-6
    )


def recorded(one, **options):
    """Trains; the state at the start and behind every step."""
    states = [state(one)]
    one.fit(lambda seen: states.append(state(one)), **options)
    return states


@SPEC
@pytest.mark.parametrize("poisoned", ["loss", "value", "gradient"])
@pytest.mark.parametrize("step", [0, 7])
def test_a_bad_step_of_a_run(folder, spec, poisoned, step):
    method = Single(poison=(step,), poisoned=poisoned)
    one = trainer(method, folder, config(optimizer=spec, clip=1.0 if step else 0.0))
    states = recorded(one)
    before, after = states[step], states[step + 1]
    assert_same(part(after, "net/student"), part(before, "net/student"))
    if step:
        assert_same(part(after, "optimizer"), part(before, "optimizer"))
    else:
        assert not any(value.any() for value in part(after, "optimizer").values())
    # The slow copy and the averages move on towards the unchanged student: a step of size 0.
    for key, target in part(before, "net/target").items():
        student = before[key.replace("target", "student")]
        torch.testing.assert_close(
            after[key], target.lerp(student, 1 - method.target_decay), rtol=0, atol=1e-7
        )
    if not step:  # where they are equal they stay
        assert_same(part(after, "net/target", "ema"), part(before, "net/target", "ema"))
    assert all(value.isfinite().all() for found in states for value in found.values())
    # The run goes on, and the log counts.
    assert [line["skipped"] for line in read_log(folder / "log.jsonl")] == [
        float(i == step) for i in range(12)
    ]
    weights = [[bits(value) for value in part(found, "net/student").values()] for found in states]
    assert [i for i in range(12) if weights[i + 1] != weights[i]] == [
        i for i in range(12) if i != step
    ]


@pytest.mark.parametrize("update", [0, 1, 2])
def test_of_several_updates_only_the_bad_one_is_left_out_and_the_log_counts_it(folder, update):
    method = Rhythm(poison=(4,), poisoned_update=update)
    one = trainer(method, folder)
    states = recorded(one)
    steps = {name: int(states[-1][f"optimizer/{name}/0/step"]) for name in ("student", "fake")}
    assert steps == {"student": 12 - (update == 2), "fake": 24 - (update < 2)}
    if update == 2:
        assert_same(part(states[5], "net/student"), part(states[4], "net/student"))
    assert one.batches == 36
    assert one.skips.flags.nonzero()[:, 0].tolist() == [4]
    assert all(value.isfinite().all() for value in states[-1].values())
    assert [line["skipped"] for line in read_log(folder / "log.jsonl")] == [
        float(i == 4) for i in range(12)
    ]


def test_one_bad_part_of_a_batch_spoils_the_whole_step(folder):
    """Accumulated: the parts before and behind it must not be applied alone."""

    class OneBadRow:
        fingerprint = data().fingerprint

        def __call__(self, number, rows, draws):
            batch = data()(number, rows, draws)
            if number == 3 and 2 in rows:
                batch.x0[list(rows).index(2)] = math.nan
            return batch

        def ids(self, number, rows):
            return data().ids(number, rows)

    one = trainer(Single(), folder, config(micro_batch=2), OneBadRow())
    states = recorded(one)
    assert_same(
        part(states[4], "net/student", "optimizer"), part(states[3], "net/student", "optimizer")
    )
    assert one.skips.flags.nonzero()[:, 0].tolist() == [3]
    assert all(value.isfinite().all() for value in states[-1].values())


@pytest.mark.parametrize("poisoned", ["loss", "gradient"])
def test_a_run_that_stays_bad_ends_with_what_is_needed_to_look_into_it(folder, poisoned):
    method = Single(poison=tuple(range(5, 100)), poisoned=poisoned)
    chosen = config(max_skips=3, log_every=1, save_every=2)
    one = trainer(method, folder, chosen)
    states = [state(one)]
    with pytest.raises(DivergedError, match=r"4 of the last 100 steps .* \(max_skips=3\)"):
        one.fit(lambda seen: states.append(state(one)))
    dump = json.loads((folder / "diverged.json").read_text())
    assert dump["seed"] == 0
    assert dump["steps"] == [6, 7, 8, 9]
    assert dump["batches"] == {str(s): data().ids(s - 1, range(8)).tolist() for s in (6, 7, 8, 9)}
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["step"]) == ("diverged", 9)
    assert [line["step"] for line in read_log(folder / "log.jsonl")] == list(range(1, 10))
    # The checkpoints hold the weights from before the first bad step, and going on ends in the same
    # way.
    store = Checkpoints(folder / "checkpoints")
    newest = store.load(store.newest())
    assert newest.facts["step"] == 8
    found = {f"net/{key}": value for key, value in newest.tensors["nets"].items()}
    assert_same(part(found, "net/student"), part(states[5], "net/student"))
    with pytest.raises(DivergedError):
        trainer(method, folder, chosen).fit()
    assert json.loads((folder / "diverged.json").read_text()) == dump


def test_no_skip_allowed_means_none():
    with pytest.raises(DivergedError, match="1 of the last"):
        trainer(Single(poison=(2,)), None, config(max_skips=0, log_every=1)).fit()
    one = trainer(Single(poison=(2,)), None, config(max_skips=1, log_every=1))
    one.fit()
    assert one.skips.flags.sum() == 1


def test_only_the_last_hundred_steps_count(folder):
    """Steps 0 to 2 are forgotten when 100 to 102 come; the names of the steps survive the turn of
    the window.
    """
    poison = (0, 1, 2, 98, 99, 103, 104, 105)
    chosen = config(steps=108, max_skips=5, log_every=1)
    one = trainer(Single(poison=poison), None, chosen)
    one.fit()
    assert one.skips.flags.nonzero()[:, 0].tolist() == [3, 4, 5, 98, 99]
    with pytest.raises(DivergedError, match="6 of the last 100"):
        trainer(Single(poison=(*poison, 106)), folder, chosen).fit()
    dump = json.loads((folder / "diverged.json").read_text())
    assert dump["steps"] == [99, 100, 104, 105, 106, 107]
    assert dump["batches"]["99"] == data().ids(98, range(8)).tolist()
    assert dump["batches"]["107"] == data().ids(106, range(8)).tolist()


def test_a_step_of_several_updates_names_all_of_its_batches(folder):
    """Each update takes its own batch, and any of them may be the bad one."""
    method = Rhythm(poison=tuple(range(2, 100)), poisoned_update=1)
    with pytest.raises(DivergedError):
        trainer(method, folder, config(max_skips=1, log_every=1)).fit()
    dump = json.loads((folder / "diverged.json").read_text())
    assert dump["steps"] == [3, 4]
    for step in (3, 4):
        expected = [
            i for update in range(3) for i in data().ids(3 * (step - 1) + update, range(8)).tolist()
        ]
        assert dump["batches"][str(step)] == expected
