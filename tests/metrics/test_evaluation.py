"""Evaluations: what is measured is what it says, and rows keep to their number of network
evaluations.
"""

import copy
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from fewstep.data.dataset import held_images
from fewstep.data.digits import Digits
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.samplers import Ode, Renoise, Sampler
from fewstep.diffusion.solvers import Dpmpp2m, Euler, Heun
from fewstep.diffusion.times import Auto
from fewstep.errors import NotFiniteError
from fewstep.metrics.authenticity import Authenticity
from fewstep.metrics.confirmed import Confirmed
from fewstep.metrics.diversity import Diversity, diversity
from fewstep.metrics.evaluation import Evaluation
from fewstep.metrics.frechet import Frechet, frechet_distance
from fewstep.metrics.measure import Measure
from fewstep.metrics.protocol import ROUNDING
from fewstep.metrics.results import Result
from fewstep.metrics.teacher_distance import TeacherDistance
from fewstep.models.classifier import find_classifier
from fewstep.models.source import Fresh
from fewstep.models.space import image_space
from fewstep.models.unet import UNet

TINY = UNet(channels=8, multipliers=(1,), blocks=1, attention=(), head_channels=8, groups=4)
ALLOWED = (1, 2, 3, 4, 5, 35)


@pytest.fixture(scope="module")
def dataset():
    return Digits(limit=300).dataset()


@pytest.fixture(scope="module")
def evaluation(dataset):
    return Evaluation.against(dataset, num=20, seed=5)


@pytest.fixture(scope="module")
def classifier():
    return find_classifier("digits_classifier")


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


class TestNumbersThatAreNotFinite:
    @pytest.mark.parametrize("spoilt", [math.nan, math.inf])
    def test_images_with_them_have_no_measure(self, evaluation, dataset, spoilt):
        images = dataset.floats().clone()
        images[3, 0, 0, 0] = spoilt
        with pytest.raises(NotFiniteError, match="1 of 300 images hold numbers that are not"):
            evaluation.of_images("x", images, dataset.labels)

    def test_nor_has_a_model_that_makes_them(self, evaluation, model):
        with torch.no_grad():
            model.denoiser.network.out[-1].weight *= 1e38
        with pytest.raises(NotFiniteError, match="20 of the first 20 images"):
            evaluation.of_model("x", model, model.sampler)

    def test_nor_one_whose_teacher_does(self, dataset, model):
        teacher = copy.deepcopy(model)
        with torch.no_grad():
            teacher.denoiser.network.out[-1].weight *= 1e38
        compared = Evaluation.against(dataset, None, [TeacherDistance()], num=4)
        with pytest.raises(NotFiniteError, match="the teacher's samples: 4 of the first 4 images"):
            compared.of_model("x", model, model.sampler, teacher=teacher)


class TestImages:
    def test_a_reference_of_one_image_says_so(self, dataset):
        one = Evaluation.against(dataset.select(torch.tensor([0])), split="train", num=4)
        told = "at least 2 images, got 1; the reference holds 1 after split=train"
        with pytest.raises(ValueError, match=told):
            one.of_images("x", dataset.floats()[:4], None)

    def test_the_reference_against_itself(self, evaluation, dataset):
        found = evaluation.of_images("data", dataset.floats(), dataset.labels)
        assert found.values["frechet"] == pytest.approx(0, abs=1e-4)
        assert found.values["diversity"] == pytest.approx(1)
        assert found.values["confirmed"] > 0.97

    def test_the_numbers_are_what_they_say(self, evaluation, dataset, classifier):
        images = Digits(limit=80).dataset("test").floats()
        labels = torch.arange(80) % 10
        values = evaluation.of_images("x", images, labels).values
        features, seen = classifier.measure(images)
        distance = frechet_distance(features, classifier.measure(dataset.floats())[0])
        assert values["frechet"] == pytest.approx(distance, rel=1e-6)
        assert values["confirmed"] == (seen == labels).double().mean().item()
        expected = diversity(images, labels) / diversity(dataset.floats(), dataset.labels)
        assert values["diversity"] == pytest.approx(expected, rel=1e-6)

    def test_without_labels_the_distances_alone(self, evaluation, dataset):
        found = evaluation.of_images("x", dataset.floats()[:50], None)
        assert list(found.values) == list(found.protocol.measures) == ["frechet", "kernel_distance"]
        assert found.values["frechet"] > 0
        assert found.protocol.left_out == {
            "confirmed": "the samples have no labels",
            "diversity": "the samples have no labels",
        }

    def test_labels_that_do_not_fit_are_refused(self, evaluation, dataset):
        images = dataset.floats()[:20]
        with pytest.raises(ValueError, match="7 labels"):
            evaluation.of_images("x", images, torch.arange(7))
        with pytest.raises(ValueError, match="out of range"):
            evaluation.of_images("x", images, torch.arange(20) - 5)

    def test_images_of_another_shape_are_refused(self, evaluation):
        with pytest.raises(ValueError, match=r"\(1, 4, 8\).*\(1, 8, 8\)"):
            evaluation.of_images("x", torch.rand(20, 1, 4, 8), None)

    def test_the_protocol(self, dataset, classifier):
        evaluation = Evaluation.against(dataset, num=20, seed=3, split="train")
        found = evaluation.of_images("x", dataset.floats()[:50], dataset.labels[:50]).protocol
        assert found.features == f"classifier {classifier.stamp}"
        assert found.reference == dataset.fingerprint()
        assert (found.reference_images, found.num, found.split) == (300, 50, "train")
        assert (found.resolution, found.rounding) == ((1, 8, 8), ROUNDING)
        assert (found.seed, found.sampler, found.guidance) == (None, None, None)
        assert found.measures["diversity"] == Diversity().scale()
        assert found.left_out == {}

    def test_images_are_measured_as_a_file_would_hold_them(self, evaluation, dataset):
        images = dataset.floats()[:60]
        noise = (torch.rand(images.shape) - 0.5) * 0.8 / 255
        noisy = (images + noise).clamp(0, 1)
        assert not torch.equal(noisy, images)
        first, second = (evaluation.of_images("x", x, None) for x in (noisy, images))
        assert first == second

    def test_held_out_images(self, evaluation):
        held_out = Digits(limit=60).dataset("test")
        found = evaluation.of_images("data", held_out.floats(), held_out.labels, "data")
        assert (found.model, found.role, found.solver) == ("data", "data", None)
        assert (found.steps, found.evaluations, found.images_per_second) == (0, 0, None)
        assert found.values["confirmed"] > 0.9
        assert found.protocol.num == 60


class TestReferences:
    """The reference decides what can be measured; what cannot is left out, and told."""

    def test_without_labels(self, dataset, evaluation):
        plain = Evaluation.against(held_images(dataset.images, None, 10))
        found = plain.of_images("x", dataset.floats()[:50], dataset.labels[:50])
        assert list(found.values) == ["frechet", "kernel_distance"]
        assert found.protocol.left_out == {
            "confirmed": "the reference has no labels",
            "diversity": "the reference has no labels",
        }
        same = evaluation.of_images("x", dataset.floats()[:50], None)
        assert found.values == same.values

    def test_of_other_classes(self, dataset, classifier):
        """The classifier's features are as good; what it sees means nothing."""
        other = Evaluation.against(held_images(dataset.images, dataset.labels, 11))
        found = other.of_images("x", dataset.floats()[:50], dataset.labels[:50])
        assert list(found.values) == ["frechet", "kernel_distance", "diversity"]
        reason = f"classifier {classifier.stamp} tells 10 classes, not 11"
        assert found.protocol.left_out == {"confirmed": reason}

    def test_of_another_shape(self, monkeypatch):
        """What they are compared in has to be there, or is said."""
        images = held_images(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), None, 10)
        monkeypatch.setattr("fewstep.metrics.default_features.installed", lambda: False)
        told = r"images of shape 1×28×28 in: features efflite0 need: pip install .* --features"
        with pytest.raises(FileNotFoundError, match=told):
            Evaluation.against(images)

    def test_no_features_are_loaded_where_none_are_needed(self):
        """So diversity has no need of a classifier for these images."""
        data = held_images(
            torch.randint(0, 256, (8, 1, 28, 28), dtype=torch.uint8), torch.arange(8) % 2, 2
        )
        evaluation = Evaluation.against(data, measures=[Diversity()])
        found = evaluation.of_images("x", data.floats(), data.labels)
        assert found.values == {"diversity": pytest.approx(1.0)}
        assert found.protocol.features is None


class TestChosen:
    def test_they_are_measured_in_this_order(self, dataset):
        chosen = [Diversity(), Authenticity(), Frechet()]
        evaluation = Evaluation.against(dataset, measures=chosen)
        found = evaluation.of_images("x", dataset.floats()[:50], dataset.labels[:50])
        assert list(found.values) == ["diversity", "authenticity", "frechet"]
        assert found.values["authenticity"] == 0

    def test_what_cannot_be_measured_is_an_error(self, dataset):
        chosen = Evaluation.against(dataset, measures=[Frechet(), Confirmed()])
        with pytest.raises(ValueError, match=r"confirmed cannot be measured: .* no labels"):
            chosen.of_images("x", dataset.floats()[:50], None)

    def test_nothing_that_can_be_measured_is_an_error(self, dataset):
        plain = Evaluation.against(held_images(dataset.images, None, 10))
        nothing = replace(plain, measures=(Confirmed(), Diversity()))
        with pytest.raises(ValueError, match=r"confirmed .*; diversity .*"):
            nothing.of_images("x", dataset.floats()[:50], None)

    def test_it_is_said_before_the_work(self, dataset, model, calls):
        chosen = Evaluation.against(dataset, measures=[TeacherDistance()], num=20)
        with pytest.raises(ValueError, match="the samples have no teachers"):
            chosen.of_model("x", model, Ode(2))
        assert calls == []

    def test_one_is_given_once(self, dataset):
        with pytest.raises(ValueError, match="frechet is given twice"):
            Evaluation.against(dataset, measures=[Frechet(), Diversity(), Frechet()])


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_read_in_the_channels_of_the_judge(dataset, evaluation, channels):
    """Of the reference and of what is measured."""
    colours = held_images(dataset.images.repeat(1, channels, 1, 1), dataset.labels, 10)
    other = Evaluation.against(colours, num=20, seed=5)
    assert other.protocol.resolution == (1, 8, 8)
    expected = evaluation.of_images("x", dataset.floats()[:40], dataset.labels[:40])
    found = other.of_data("x", colours.select(torch.arange(40)), dataset.labels[:40])
    assert found.values == expected.values
    diverse = Evaluation.against(colours, measures=[Diversity()])  # nobody judges
    assert diverse.protocol.resolution == (channels, 8, 8)
    assert diverse.of_data("x", dataset, dataset.labels).values["diversity"] == pytest.approx(1)


def test_the_teacher_of_the_same_noise(dataset, model):
    """It gets the noise and the labels of the student; so the student itself is at distance 0."""
    evaluation = Evaluation.against(dataset, measures=[TeacherDistance()], num=20, seed=5)
    model.sampler = Ode(2)
    same = evaluation.of_model("x", model, Ode(2), teacher=model)
    assert same.values == {"teacher_distance": 0.0}
    other = evaluation.of_model("x", model, Ode(1), teacher=model)
    assert same.protocol.differs(other.protocol) == []
    a, b = ((255 * model.generate(num=20, seed=5, sampler=Ode(n))).round() / 255 for n in (1, 2))
    expected = np.mean([(x - y).square().mean().sqrt().item() for x, y in zip(a, b)])
    assert other.values["teacher_distance"] == pytest.approx(expected, rel=1e-4)


def test_distances_to_two_teachers_are_unlike(dataset, model):
    """Other weights or another sampler make another teacher; a copy is the same one."""
    evaluation = Evaluation.against(dataset, measures=[TeacherDistance()], num=4)
    model.sampler = Ode(2)
    first = evaluation.of_model("x", model, Ode(1), teacher=copy.deepcopy(model))
    beside = replace(evaluation, beside=first)
    assert beside.of_model("x", model, Ode(1), teacher=model).values == first.values
    model.sampler = Ode(3)
    with pytest.raises(ValueError, match=r"teacher: .*steps=2.* against .*steps=3"):
        beside.of_model("x", model, Ode(1), teacher=model)
    model.sampler = Ode(2)
    with torch.no_grad():
        next(model.denoiser.parameters()).flatten()[0] += 1e-6
    with pytest.raises(ValueError, match="teacher: "):
        beside.of_model("x", model, Ode(1), teacher=model)


class TestModels:
    def test_a_row(self, model, evaluation, calls):
        sampler = Ode(3, solver=Euler())
        found = evaluation.of_model("teacher", model, sampler, role="teacher", headline=True)
        assert sum(calls) == 20 * 3
        assert (found.model, found.role, found.headline) == ("teacher", "teacher", True)
        assert (found.solver, found.steps, found.evaluations) == ("euler", 3, 3)
        assert Sampler.parse(found.protocol.sampler) == sampler
        assert (found.protocol.num, found.protocol.seed) == (20, 5)
        assert 0 <= found.values["confirmed"] <= 1
        assert found.images_per_second > 0

    def test_its_numbers_are_those_of_its_images(self, model, evaluation):
        found = evaluation.of_model("x", model, Ode(2))
        images = model.generate(num=20, seed=5, sampler=Ode(2))
        same = evaluation.of_images("x", images, torch.arange(20) % 10)
        assert found.values == same.values
        other = replace(evaluation, seed=6).of_model("x", model, Ode(2))
        assert other.values["frechet"] != found.values["frechet"]

    def test_a_row_names_a_sampler_that_is_no_ode(self, model, evaluation):
        found = evaluation.of_model("student", model, Renoise(2))
        assert (found.solver, found.steps, found.evaluations) == ("renoise", 2, 2)

    def test_a_row_counts_the_evaluations_of_guidance(self, model, evaluation, calls):
        """A model that is guided by default pays twice; a table that does not say so would
        flatter it.
        """
        model.guidance = Guidance("doubled", 1.0, 8.0, 2.0)
        found = evaluation.of_model("teacher", model, Ode(3, solver=Euler()))
        assert sum(calls) == 20 * 6
        assert found.evaluations == 6

    def test_a_row_at_another_guidance(self, model, evaluation, calls):
        """It is sampled, counted and written down at that scale; without one at its own."""
        model.guidance = Guidance("doubled", 1.0, 8.0, 2.0)
        rows = []
        for guidance in (None, 2.0, 1.0, 5.0):
            rows.append(evaluation.of_model("t", model, Ode(1), guidance=guidance))
        assert sum(calls) == 20 * (2 + 2 + 1 + 2)
        assert [row.evaluations for row in rows] == [2, 2, 1, 2]
        assert [row.protocol.guidance for row in rows] == [2.0, 2.0, 1.0, 5.0]
        assert rows[0].values == rows[1].values
        assert len({row.values["frechet"] for row in rows}) == 3


class TestBestSolver:
    def test_guidance_halves_the_steps_that_fit(self, model, evaluation):
        model.guidance = Guidance("doubled", 1.0, 8.0, 1.0)
        for n in (2, 5):
            row = evaluation.best_solver("t", model, n, guidance=3.0)
            assert row.evaluations == n
            assert model.evaluations(Sampler.parse(row.protocol.sampler), 3.0) <= n
        with pytest.raises(ValueError, match="1 network evaluation"):
            evaluation.best_solver("t", model, 1, guidance=3.0)

    def test_it_obeys_the_budget(self, model, evaluation, monkeypatch):
        """Each solver gets as many steps as the budget allows, and never more; the best of them
        is shown.
        """
        tried = {}

        def measured(self, name, model, sampler, *, evaluations, **_):
            tried.setdefault(evaluations, []).append(sampler)
            best = {("Euler", 2): 1.0, ("Dpmpp2m", 35): 1.0}
            value = best.get((type(sampler.solver).__name__, sampler.steps), 2.0)
            protocol = replace(
                self.protocol, measures={"frechet": Frechet().scale()}, sampler=sampler.dump()
            )
            return Result(name, {"frechet": value}, protocol, evaluations=evaluations)

        monkeypatch.setattr(Evaluation, "of_model", measured)
        rows = [evaluation.best_solver("teacher", model, n) for n in ALLOWED]
        assert [row.evaluations for row in rows] == list(ALLOWED)
        for allowed in ALLOWED:
            found = [(type(s.solver).__name__, s.steps) for s in tried[allowed]]
            for sampler in tried[allowed]:
                assert isinstance(sampler.times, Auto)
                assert sampler.evaluations <= allowed
            assert len(set(found)) == len(found)
            # n steps of Heun take 2n - 1 evaluations; one step is the same for every solver and
            # needs one row only.
            most = {("Euler", allowed), ("Heun", (allowed + 1) // 2), ("Dpmpp2m", allowed)}
            several = {pair for pair in found if pair[1] > 1}
            assert several == {pair for pair in most if pair[1] > 1}
        assert [(type(s.solver).__name__, s.steps) for s in tried[1]] == [("Euler", 1)]
        best = {row.evaluations: Sampler.parse(row.protocol.sampler) for row in rows}
        assert best[2] == Ode(2, solver=Euler())
        assert best[35] == Ode(35, solver=Dpmpp2m())

    def test_it_spends_what_it_says(self, model, evaluation, calls):
        rows = [evaluation.best_solver("teacher", model, n) for n in (1, 4)]
        assert [row.evaluations for row in rows] == [1, 4]
        # One step of Euler, then 4 steps of Euler, 2 of Heun (3 evaluations), 4 of DPM-Solver++.
        assert sum(calls) == 20 * (1 + 4 + 3 + 4)
        assert [row.protocol.tried for row in rows] == [("euler",), ("euler", "heun", "dpmpp_2m")]

    def test_other_solvers(self, model, evaluation, calls):
        heun = replace(evaluation, solvers=(Heun(),)).best_solver("t", model, 5)
        assert (heun.solver, heun.steps, sum(calls)) == ("heun", 3, 20 * 5)

    def test_the_first_measure_decides(self, model, dataset):
        """Here one of a class that fewstep does not know, and which prefers bright images."""

        @dataclass(frozen=True)
        class Bright(Measure):
            needs: ClassVar[tuple[str, ...]] = ()
            better: ClassVar[str] = "higher"

            def __call__(self, samples, reference):
                return samples.images.mean().item()

        evaluation = Evaluation.against(dataset, measures=[Bright(), Frechet()], num=20)
        best = evaluation.best_solver("t", model, 3)
        values = []
        for sampler in (Ode(3, solver=Euler()), Ode(2), Ode(3, solver=Dpmpp2m())):
            values.append(evaluation.of_model("t", model, sampler).values["bright"])
        assert best.values["bright"] == max(values)
