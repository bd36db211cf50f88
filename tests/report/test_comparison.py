"""Samples side by side: what is drawn, what is asked for, and what is left out."""

import dataclasses

import pytest
import torch
from PIL import Image
from tests.models.made import DOUBLED, made

from fewstep.data.dataset import held_images
from fewstep.diffusion.samplers import Ode, Renoise
from fewstep.diffusion.solvers import Euler, Heun
from fewstep.errors import NotFiniteError
from fewstep.models.request import Answer
from fewstep.report.comparison import Comparison, compared, samplers_of, shown_of, strip


def pictures(labels, classes=10, notes=None):
    labels = torch.tensor(labels)
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None]
    return held_images(images.expand(-1, 1, 8, 8).clone(), labels, classes, notes=notes)


def test_of_each_class_the_first():
    shown = shown_of(made(), pictures([3, 1, 3, 0, 1]))
    assert shown.asked["label"].tolist() == [0, 1, 3]
    assert shown.words == ["0", "1", "3"]
    assert (255 * shown.real[:, 0, 0, 0]).round().tolist() == [3, 1, 0]
    named = pictures([3, 1], notes={"class names": "cat, dog, bird, cow"})
    assert shown_of(made(), named).words == ["dog", "cow"]
    assert len(shown_of(made(), pictures([*range(10), *range(10)])).words) == 10


def test_without_data_a_model_is_asked_for_what_it_knows():
    shown = shown_of(made(), None)
    assert shown.real is None
    assert shown.words == [str(i) for i in range(10)]


def test_a_column_has_a_row_for_each_cost():
    """Of an ODE the most steps that cost no more, where guidance doubles them; and its own."""
    model = dataclasses.replace(made(), sampler=Ode(18, solver=Heun()))
    found = samplers_of(model, (1, 2, 4))
    assert [(s.steps, type(s.solver)) for s in found] == [
        *((1, Euler), (2, Euler), (4, Euler)),
        (18, Heun),
    ]
    assert [model.evaluations(s) for s in found] == [1, 2, 4, 35]
    guided = dataclasses.replace(model, guidance=DOUBLED._replace(default=3.0))
    assert [guided.evaluations(s) for s in samplers_of(guided, (1, 2, 4))] == [2, 4, 70]
    student = dataclasses.replace(made(), sampler=Renoise(2))
    assert [s.steps for s in samplers_of(student, (1, 2, 4), lambda n: n != 1)] == [2, 4]


def test_the_same_seeds_beside_each_other(tmp_path):
    teacher = dataclasses.replace(made(), sampler=Ode(3, solver=Euler()))
    student = dataclasses.replace(made(), sampler=Renoise(1))
    models = {
        "teacher": (teacher, samplers_of(teacher, (1,))),
        "student": (student, samplers_of(student, (1,), lambda n: True)),
    }
    found = compared(models, shown_of(student, pictures([0, 1])), seed=3)
    assert found.columns == ["teacher", "student"]
    assert [label for label, _ in found.rows] == ["1 evaluation", "3 evaluations"]
    (_, (one, two)), (_, (three, nothing)) = found.rows
    assert nothing is None
    expected = strip(student.generate([0, 1], steps=1, seed=3))
    assert two.tobytes() == expected.tobytes()
    assert three.tobytes() == strip(teacher.generate([0, 1], steps=3, seed=3)).tobytes()
    assert one.size == two.size == (2 * 9 * 16 - 16, 8 * 16)
    found.save(tmp_path / "saved")
    again = Comparison.load(tmp_path / "saved")
    assert again.real.tobytes() == found.real.tobytes()
    assert again.rows[0][1][1].tobytes() == two.tobytes()
    assert (again.columns, again.words, again.notes) == (found.columns, found.words, [])
    # Random weights; of the teacher with fewer steps than its own nothing is said.
    assert again.striking == found.striking
    assert [line.partition(": ")[0] for line in found.striking] == [
        "student with 1 evaluation",
        "teacher with 3 evaluations",
    ]
    assert Comparison.load(tmp_path) is None


def test_what_takes_too_long_is_left_out(monkeypatch):
    """By the pace of the rows before it; the first is always drawn."""
    clock = iter(range(0, 1000, 7))
    monkeypatch.setattr("fewstep.report.comparison.time.monotonic", lambda: float(next(clock)))
    model = dataclasses.replace(made(), sampler=Renoise(1))
    samplers = [Renoise(1), Renoise(2), Renoise(100)]
    found = compared({"student": (model, samplers)}, shown_of(model, None), seconds=60)
    assert [label for label, _ in found.rows] == ["1 evaluation", "2 evaluations"]
    assert found.notes == ["student, 100 evaluations: would take 350 s"]


def test_samples_that_are_not_finite_are_told(monkeypatch):
    def images(self):
        raise NotFiniteError("8 of 8")

    monkeypatch.setattr(Answer, "images", images)
    said = []
    model = dataclasses.replace(made(), sampler=Renoise(2))
    found = compared({"a": (model, [Renoise(2)])}, shown_of(model, None), say=said.append)
    assert found.rows == []
    assert said == ["warning: no samples with 2 steps in the report: 8 of 8"]


@pytest.mark.parametrize(
    ("side", "size"),
    [
        (8, (3 * 144 - 16, 128)),
        (28, (3 * 145 - 5, 140)),
        (64, (3 * 130 - 2, 128)),
        (512, (384, 128)),
    ],
)
def test_few_images_in_a_row_are_large(side, size):
    picture = strip(torch.rand(3, 3, side, side))
    assert isinstance(picture, Image.Image)
    assert picture.size == size


@pytest.mark.parametrize(
    ("count", "side", "size"), [(10, 8, (10 * 54 - 6, 48)), (8, 28, (8 * 58 - 2, 56))]
)
def test_many_images_in_a_row_fit_beside_others(count, side, size):
    assert strip(torch.rand(count, 3, side, side)).size == size
