"""Rows of a comparison keep to their number of network evaluations."""

import pytest
import torch

from fewstep.data.digits import Digits
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.samplers import Ode, Renoise, Sampler
from fewstep.diffusion.solvers import Euler
from fewstep.diffusion.times import Auto
from fewstep.metrics import evaluation
from fewstep.metrics.protocol import Reference, find_judge
from fewstep.models.source import Fresh
from fewstep.models.space import image_space
from fewstep.models.unet import UNet

TINY = UNet(channels=8, multipliers=(1,), blocks=1, attention=(), head_channels=8, groups=4)
ALLOWED = (1, 2, 3, 4, 5, 35)


@pytest.fixture(scope="module")
def reference():
    return Reference.of(Digits(limit=60).dataset(), find_judge(None, (1, 8, 8)))


@pytest.fixture
def model():
    made = Fresh(network=TINY).load(image_space((1, 8, 8), 10), seed=0)
    for parameter in made.denoiser.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return made


@pytest.fixture
def calls(model):
    """Rows that went through the network, call by call."""
    seen = []
    model.denoiser.network.register_forward_pre_hook(
        lambda module, inputs: seen.append(len(inputs[0]))
    )
    return seen


def test_samples_are_balanced_and_keyed_by_the_seed(model):
    images, labels, rate = evaluation.samples(model, 25, 3, steps=1)
    assert images.shape == (25, 1, 8, 8)
    assert labels.tolist() == [i % 10 for i in range(25)]
    assert rate > 0
    again, _, _ = evaluation.samples(model, 25, 3, steps=1, batch=16)
    assert torch.allclose(images, again, atol=1e-5)
    assert not torch.allclose(images, evaluation.samples(model, 25, 4, steps=1)[0], atol=1e-2)


def test_a_row(model, reference, calls):
    sampler = Ode(3, solver=Euler())
    found = evaluation.row("teacher", model, sampler, reference, num=20, seed=5)
    assert sum(calls) == 20 * 3
    assert (found["model"], found["solver"], found["steps"], found["evaluations"]) == (
        "teacher",
        "euler",
        3,
        3,
    )
    assert Sampler.parse(found["protocol"]["sampler"]) == sampler
    assert found["protocol"]["num"] == 20
    assert found["protocol"]["seed"] == 5
    assert 0 <= found["confirmed"] <= 1
    assert found["images_per_second"] > 0


def test_a_row_names_a_sampler_that_is_no_ode(model, reference):
    found = evaluation.row("student", model, Renoise(2), reference, num=20, seed=0)
    assert (found["solver"], found["steps"], found["evaluations"]) == ("renoise", 2, 2)


def test_a_row_counts_the_evaluations_of_guidance(model, reference, calls):
    """A model that is guided by default pays twice; a table that does not say so would flatter
    it.
    """
    model.guidance = Guidance("doubled", 1.0, 8.0, 2.0)
    found = evaluation.row("teacher", model, Ode(3, solver=Euler()), reference, num=20, seed=0)
    assert sum(calls) == 20 * 6
    assert found["evaluations"] == 6


def test_a_row_at_another_guidance(model, reference, calls):
    """It is sampled, counted and written down at that scale; without one at the model's own."""
    model.guidance = Guidance("doubled", 1.0, 8.0, 2.0)
    rows = [
        evaluation.row("t", model, Ode(1), reference, num=20, seed=0, guidance=g)
        for g in (None, 2.0, 1.0, 5.0)
    ]
    assert sum(calls) == 20 * (2 + 2 + 1 + 2)
    assert [row["evaluations"] for row in rows] == [2, 2, 1, 2]
    assert [row["protocol"]["guidance"] for row in rows] == [2.0, 2.0, 1.0, 5.0]
    assert rows[0]["frechet"] == rows[1]["frechet"]
    assert len({row["frechet"] for row in rows}) == 3


def test_guided_ode_rows_fit_twice_the_evaluations_into_the_budget(model, reference):
    model.guidance = Guidance("doubled", 1.0, 8.0, 1.0)
    rows = evaluation.ode_rows("t", model, reference, (2, 5), 20, 0, guidance=3.0)
    assert [row["evaluations"] for row in rows] == [2, 5]
    assert all(
        model.evaluations(Sampler.parse(r["protocol"]["sampler"]), 3.0) <= r["evaluations"]
        for r in rows
    )
    with pytest.raises(ValueError, match="1 network evaluation"):
        evaluation.ode_rows("t", model, reference, (1,), 20, 0, guidance=3.0)


def test_ode_rows_obey_the_budget(model, reference, monkeypatch):
    """Each solver gets as many steps as the budget allows, and never more; the best of them is
    shown.
    """
    tried = {}

    def measured(name, model, sampler, reference, num, seed, evaluations, guidance):
        tried.setdefault(evaluations, []).append(sampler)
        frechet = {("Euler", 2): 1.0, ("Dpmpp2m", 35): 1.0}.get(
            (type(sampler.solver).__name__, sampler.steps), 2.0
        )
        return {"sampler": sampler, "evaluations": evaluations, "frechet": frechet}

    monkeypatch.setattr(evaluation, "row", measured)
    rows = evaluation.ode_rows("teacher", model, reference, ALLOWED, 10, 0)
    assert [row["evaluations"] for row in rows] == list(ALLOWED)
    for allowed in ALLOWED:
        found = [(type(s.solver).__name__, s.steps) for s in tried[allowed]]
        assert all(isinstance(s.times, Auto) and s.evaluations <= allowed for s in tried[allowed])
        assert len(set(found)) == len(found)
        # n steps of Heun take 2n - 1 evaluations; one step is the same for every solver and needs
        # one row only.
        most = {("Euler", allowed), ("Heun", (allowed + 1) // 2), ("Dpmpp2m", allowed)}
        assert {pair for pair in found if pair[1] > 1} == {pair for pair in most if pair[1] > 1}, (
            allowed
        )
    assert [(type(s.solver).__name__, s.steps) for s in tried[1]] == [("Euler", 1)]
    best = {row["evaluations"]: row["sampler"] for row in rows}
    assert best[2] == Ode(2, solver=Euler())
    assert (type(best[35].solver).__name__, best[35].steps) == ("Dpmpp2m", 35)


def test_ode_rows_spend_what_they_say(model, reference, calls):
    rows = evaluation.ode_rows("teacher", model, reference, (1, 4), 20, 0)
    assert [row["evaluations"] for row in rows] == [1, 4]
    # One step of Euler, then 4 steps of Euler, 2 of Heun (3 evaluations) and 4 of DPM-Solver++.
    assert sum(calls) == 20 * (1 + 4 + 3 + 4)


def test_the_row_of_the_data(reference):
    held_out = Digits(limit=60).dataset("test")
    found = evaluation.data_row(held_out.floats(), held_out.labels, reference)
    assert (found["model"], found["solver"], found["images_per_second"]) == ("data", None, None)
    assert found["confirmed"] > 0.9
    assert found["protocol"]["num"] == 60
