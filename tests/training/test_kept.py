"""Which checkpoints stay, and what a long run holds."""

import gc
import math
import os
from pathlib import Path

import pytest
import torch
from tests.training.conftest import saved
from tests.training.tiny import Single, config, data, trainer

from fewstep.errors import DivergedError
from fewstep.training.checkpoint import Checkpoints
from fewstep.training.health import Health
from fewstep.training.log import read_log


def steps_in(folder):
    return sorted(int(path.name[5:]) for path in folder.glob("step-*"))


def fill(store, steps, scores=()):
    scores = dict(scores)
    for step in steps:
        content = saved(step)
        if step in scores:
            content.facts["score"] = scores[step]
        store.save(step, content)


@pytest.mark.parametrize("keep", [2, 3])
@pytest.mark.parametrize(("every", "stay"), [(0, []), (4, [4, 8, 12]), (5, [5, 10]), (100, [])])
def test_milestones_stay_beside_the_newest(folder, keep, every, stay):
    store = Checkpoints(folder, keep, every=every)
    fill(store, range(1, 16))
    assert steps_in(folder) == sorted({*stay, *range(16 - keep, 16)})


@pytest.mark.parametrize("best", [1, 4, 9, 10])
def test_the_lowest_score_stays(folder, best):
    store = Checkpoints(folder)
    scores = {step: 1.0 + abs(step - best) for step in range(1, 11)}
    fill(store, range(1, 11), scores)
    assert steps_in(folder) == sorted({best, 9, 10})
    assert store.newest() == 10  # a run goes on from the newest, not from the best


def test_the_first_of_equal_ones_and_none_without_a_number(folder):
    store = Checkpoints(folder)
    fill(store, range(1, 9), {2: 3.0, 3: 1.0, 4: None, 5: 1.0, 7: 2.0})
    assert steps_in(folder) == [3, 7, 8]


def test_the_best_of_an_earlier_life_is_remembered(folder):
    """It is in the checkpoints themselves, so there is nothing to lose."""
    fill(Checkpoints(folder), range(1, 5), {1: 1.0, 3: 2.0})
    fill(Checkpoints(folder), range(5, 9), {6: 1.5})
    assert steps_in(folder) == [1, 7, 8]
    store = Checkpoints(folder)
    (folder / "step-00000001" / "manifest.json").write_text("torn")
    fill(store, [9])
    assert 1 not in steps_in(folder)
    store.discard_all()
    assert steps_in(folder) == []


def test_a_run_keeps_what_its_options_say(folder):
    chosen = config(steps=24, save_every=2, keep_every=8, keep_best="health.mine")
    numbers = {2: 5.0, 6: math.nan, 10: 1.0, 12: 3.0, 14: 1.0}

    def measure(seen):
        if seen.done in numbers:
            seen.numbers["health.mine"] = numbers[seen.done]

    said = []
    trainer(Single(), folder, chosen).fit(measures=[measure], say=said.append)
    assert steps_in(folder / "checkpoints") == [8, 10, 16, 22, 24]
    assert said[0] == (
        "warning: step 4 has no health.mine, so its checkpoint is not compared (trainer.keep_best)"
    )


def test_what_is_kept_is_whole_and_may_change(folder):
    first = config(steps=12, save_every=2, keep_every=4)
    trainer(Single(), folder, first).fit()
    store = Checkpoints(folder / "checkpoints")
    assert store.load(4).facts["step"] == 4
    again = trainer(Single(), folder, config(steps=12, save_every=2, keep_best="student"))
    assert again.resume(store) == 12


def test_behind_a_step_that_was_left_out_no_checkpoint_goes(folder):
    """What came before may be the last good one: here the weights are spoilt behind step 6, by
    numbers that are finite, and all that follows is left out.
    """

    def spoil(seen):
        if seen.done == 6:
            with torch.no_grad():
                one.nets.student[4].weight.mul_(1e30)

    one = trainer(Single(), folder, config(steps=30, save_every=1, log_every=1))
    with pytest.raises(DivergedError):
        one.fit(measures=[spoil])
    found = steps_in(folder / "checkpoints")
    assert found[:2] == [5, 6]
    good = Checkpoints(folder / "checkpoints").load(5).tensors["nets"]
    assert max(value.abs().max() for value in good.values()) < 100


def test_behind_good_steps_they_go_again(folder):
    method = Single(poison=(5, 6, 7))
    trainer(method, folder, config(steps=12, save_every=1)).fit()
    assert steps_in(folder / "checkpoints") == [11, 12]


def held():
    """Tensors that are alive and their bytes, open files, and resident pages in MiB."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    pages = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    count, size = len(tensors), sum(one.nbytes for one in tensors)
    return count, size, len(os.listdir("/proc/self/fd")), pages / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the numbers of Linux")
def test_a_long_run_holds_no_more_at_its_end_than_early(folder):
    """With log, checkpoints, health and jumps that are looked for, over 300 steps."""
    chosen = config(steps=420, save_every=60, log_every=20, keep_every=180, keep_best="student")
    one = trainer(Single(), folder, chosen)
    held_out = data(images_seed=7).dataset
    health = Health(one.method, one.nets, one.data, held_out, None, one.device, every=20)
    found = {}

    def look(seen):
        if seen.done in (119, 419):  # the log was read 19 steps before both
            found[seen.done] = held()

    one.fit(look, measures=[health])
    (tensors, size, files, pages), late = found[119], found[419]
    assert late[0] <= tensors
    assert late[1] <= size
    assert late[2] == files
    assert late[3] - pages < 4
    assert len(read_log(folder / "log.jsonl")) == 420
    kept = steps_in(folder / "checkpoints")
    assert {180, 360, 420} <= set(kept)
    assert len(kept) <= 4  # and the best
