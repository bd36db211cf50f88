"""Weights, averages and optimizers that are not finite are never saved; a run without a good step,
or whose student makes no numbers, is not finished.
"""

import json
import math

import pytest
import torch
from tests.training.tiny import Rhythm, Single, config, data, model, real, trainer

from fewstep.cli.main import code_of
from fewstep.data.digits import Digits
from fewstep.diffusion.densities import LogNormal
from fewstep.errors import DivergedError
from fewstep.learning.schedules import Constant
from fewstep.methods.diffusion import Diffusion
from fewstep.run import Run
from fewstep.training.checkpoint import Checkpoints
from fewstep.training.optimizers import AdamW, RAdam, Sgd
from fewstep.training.students import save_students


def status(folder):
    return json.loads((folder / "status.json").read_text())


def newest(folder):
    return Checkpoints(folder / "checkpoints", say=pytest.fail).newest()


def spoil_at(step, place, spoilt=math.nan):
    """Behind that step a number of the run is not finite any more: it looks before the log."""

    def look(seen):
        if seen.done == step:
            with torch.no_grad():
                place().view(-1)[0] = spoilt

    return look


PLACES = {
    "the weights of student": lambda one: one.leaves["student"]["1.weight"],
    "the weights of target": lambda one: one.parameters["target"]["1.weight"],
    "the average of student": lambda one: one.averages["student"][0.5]["4.bias"],
    "the optimizer of student": lambda one: next(iter(one.optimizers["student"].state.values()))[
        "exp_avg_sq"
    ],
}


@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
@pytest.mark.parametrize("what", PLACES)
def test_what_is_not_finite_is_named_and_not_saved(folder, what, spoilt, every):
    one = trainer(Single(), folder, config(save_every=every, log_every=100))
    look = spoil_at(7, lambda: PLACES[what](one.state), spoilt)
    with pytest.raises(DivergedError, match=f"{what}.*: numbers that are not finite") as error:
        one.fit(measures=[look])
    assert code_of(error.value) == 4
    assert status(folder)["state"] == "diverged"
    assert newest(folder) == 6 // every * every  # the last good one
    for path in (folder / "checkpoints").iterdir():
        content = Checkpoints(folder / "checkpoints").load(int(path.name[5:]))
        for tensors in content.tensors.values():
            assert all(value.isfinite().all() for value in tensors.values())


@pytest.mark.parametrize("optimizer", [AdamW(lr=1e39), RAdam(lr=1e39), Sgd(lr=1e300)])
def test_a_rate_that_ends_in_infinity(folder, optimizer):
    chosen = config(optimizer=optimizer, schedule=Constant(), save_every=1, clip=0.0)
    with pytest.raises(DivergedError):
        trainer(Single(), folder, chosen).fit()
    step = newest(folder)
    if step is not None:
        groups = Checkpoints(folder / "checkpoints").load(step).tensors.values()
        assert all(value.isfinite().all() for tensors in groups for value in tensors.values())


def test_without_a_folder_too():
    one = trainer(Single(), None, config(log_every=4))
    with pytest.raises(DivergedError, match="the weights of target"):
        one.fit(measures=[spoil_at(3, lambda: one.state.parameters["target"]["1.weight"])])


def test_a_buffer_may_be_infinite_as_masks_are_but_not_nan(folder):
    one = trainer(Single(), folder)
    for net in (one.nets.student, one.nets.target):
        net.register_buffer("mask", torch.tensor([-math.inf]))
        net.register_buffer("count", torch.tensor(3))
    assert one.state.broken() == ""
    one.fit()
    one.nets.target.mask[0] = math.nan
    assert one.state.broken() == "the buffers of target: numbers that are not finite"


@pytest.mark.parametrize("method", [Single, Rhythm])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_a_run_without_a_good_step_is_not_finished(folder, method, steps):
    """Fewer steps than `max_skips` allows to leave out."""
    chosen = config(steps=steps, save_every=1)
    with pytest.raises(DivergedError, match=f"none of the last {steps} steps had a") as error:
        trainer(method(poison=tuple(range(20))), folder, chosen).fit()
    assert code_of(error.value) == 4
    assert status(folder)["state"] == "diverged"
    assert json.loads((folder / "diverged.json").read_text())["steps"] == list(range(1, steps + 1))


def test_one_good_step_is_a_run(folder):
    trainer(Single(poison=(0, 2, 3)), folder, config(steps=4)).fit()
    assert status(folder)["state"] == "trained"


def test_more_than_a_window_of_allowed_skips_does_not_hide_it():
    chosen = config(steps=130, max_skips=1000)
    with pytest.raises(DivergedError, match="none of the last 100 steps"):
        trainer(Single(poison=tuple(range(5, 130))), None, chosen).fit()


def test_a_student_whose_samples_are_not_finite_is_not_saved(folder):
    """Its weights are: it is sampled before it is saved."""
    one = real(Diffusion(), folder, config(steps=2))
    one.fit()
    for average in one.state.averages["student"].values():
        average["network.last.weight"].mul_(1e38)
    with pytest.raises(DivergedError, match="student is not saved: 1 of the first 1") as error:
        save_students(one, model(), folder, {})
    assert code_of(error.value) == 4
    assert not (folder / "student").exists()


def test_a_density_that_is_no_number(folder):
    """However a run comes to bad numbers, it ends with 4 and without a checkpoint."""
    run = Run(
        Digits(), Diffusion(density=LogNormal(mean=math.nan)), trainer=config(steps=1, save_every=1)
    )
    found = run.prepared(data().dataset, model=model(), folder=folder)
    with pytest.raises(DivergedError, match="none of the last 1 steps"):
        found.trainer.fit()
    assert newest(folder) is None
