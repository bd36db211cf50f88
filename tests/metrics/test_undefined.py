"""A measure that has no value for these images is told, and takes no other one with it."""

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from fewstep.data.dataset import held_images
from fewstep.data.digits import Digits
from fewstep.metrics.authenticity import Authenticity
from fewstep.metrics.evaluation import Evaluation
from fewstep.metrics.frechet import Frechet
from fewstep.metrics.measure import Measure
from fewstep.metrics.results import Result
from fewstep.report.tables import table

WHY = {
    "divides": "division by zero",
    "eigenvalues": "linalg",
    "says": "too dark",
    "nan": "it is nan, no number",
    "-inf": "it is -inf, no number",
}


@pytest.fixture(scope="module")
def dataset():
    return Digits(limit=300).dataset()


@pytest.fixture(scope="module")
def undefined():
    @dataclass(frozen=True)
    class Undefined(Measure):
        """What a measure may do where it has no value."""

        by_default: ClassVar[bool] = False
        needs: ClassVar[tuple[str, ...]] = ()
        how: str = "divides"

        def __call__(self, samples, reference):
            if self.how == "divides":
                return 1 / (len(samples) - len(samples))
            if self.how == "eigenvalues":
                return torch.linalg.eigvalsh(torch.full((3, 3), float("nan"))).sum()
            if self.how == "says":
                raise ValueError("too dark")
            return float(self.how)

    return Undefined


@pytest.mark.parametrize("how", WHY)
def test_it_is_told_beside_the_others(dataset, undefined, how):
    measures = [Frechet(), undefined(how), Authenticity()]
    evaluation = Evaluation.against(dataset, measures=measures)
    found = evaluation.of_images("x", dataset.floats()[:50], None)
    assert list(found.values) == ["frechet", "authenticity"]
    assert list(found.protocol.measures) == ["frechet", "undefined", "authenticity"]
    assert WHY[how] in found.protocol.undefined["undefined"]
    assert "undefined (" in found.protocol.told()["undefined"]
    assert Result.of_plain(json.loads(json.dumps(found.plain()))) == found
    assert table([found]).rows[0][5] == "–"


@pytest.mark.parametrize("how", WHY)
def test_the_first_one_is_an_error(dataset, undefined, how):
    evaluation = Evaluation.against(dataset, measures=[undefined(how), Frechet()])
    with pytest.raises(ValueError, match=f"undefined: .*{WHY[how]}"):
        evaluation.of_images("x", dataset.floats()[:50], None)


def test_diversity_where_the_reference_has_none(dataset):
    same = dataset.images[:10].repeat(6, 1, 1, 1)
    reference = held_images(same, torch.arange(60) % 10, 10)
    found = Evaluation.against(reference).of_images("x", dataset.floats(), dataset.labels)
    assert list(found.values) == ["frechet", "kernel_distance", "confirmed"]
    assert found.protocol.undefined == {
        "diversity": "the reference has no two unlike images of one class"
    }


@pytest.mark.parametrize("of_reference", [False, True])
def test_diversity_of_one_image_in_each_class(dataset, of_reference):
    few = held_images(dataset.images[:10], torch.arange(10), 10)
    pair = (few, dataset) if of_reference else (dataset, few)
    found = Evaluation.against(pair[0]).of_data("x", pair[1], pair[1].labels)
    assert list(found.values) == ["frechet", "confirmed"]
    assert "two images of each class" in found.protocol.undefined["kernel_distance"]
    assert "two images of one class" in found.protocol.undefined["diversity"]
