"""Measures of captions of shapes: their values on samples whose values are known."""

import math

import pytest
import torch

from fewstep.data.shape_captions import ONE, TWO
from fewstep.data.shapes import GREY, Shapes, layer
from fewstep.metrics.attribute_diversity import AttributeDiversity
from fewstep.metrics.caption_accuracy import CaptionAccuracy
from fewstep.metrics.measure import ImageSet


def drawn(**options):
    """Pictures with their captions."""
    dataset = Shapes(**options).read()
    return {"image": dataset.floats(), "caption": dataset.values["caption"]}


def measured(measure, columns):
    return measure()(ImageSet(columns), ImageSet({}))


def test_the_share_that_follows():
    """A third is not readable, a sixth has the caption of another picture."""
    columns = drawn(num=60, mention=1.0)
    assert measured(CaptionAccuracy, columns) == 1
    columns["image"][:20] = GREY
    columns["caption"][20:30] = columns["caption"][50:]
    assert measured(CaptionAccuracy, columns) == 0.5


@pytest.mark.parametrize("tier", ["one", "two"])
def test_true_samples_vary_as_expected(tier):
    """Near the mean over attributes of √((k - 1) / (2 π n)), of which 8 seeds give the mean."""
    values = ONE if tier == "one" else {k: v for k, v in TWO.items() if k != "relation"}
    n = 150
    found = []
    for seed in range(8):
        found.append(measured(AttributeDiversity, drawn(num=n, seed=seed, tier=tier, mention=0.0)))
    expected = [math.sqrt((len(v) - 1) / (2 * math.pi * n)) for v in values.values()]
    assert sum(found) / 8 == pytest.approx(sum(expected) / len(expected), rel=0.15)


def test_one_mode():
    """Exactly 1 - 1/k of each attribute that is free."""
    columns = drawn(num=1, mention=0.0)
    columns = {"image": columns["image"].repeat(30, 1, 1, 1), "caption": ["a shape"] * 30}
    missing = [1 - 1 / len(values) for values in ONE.values()]
    assert measured(AttributeDiversity, columns) == pytest.approx(sum(missing) / 4, abs=1e-12)
    two = drawn(num=1, mention=0.0, tier="two")
    columns = {"image": two["image"].repeat(30, 1, 1, 1), "caption": two["caption"] * 30}
    free = [len(values) for name, values in TWO.items() if name != "relation"]
    missing = [1 - 1 / k for k in free]
    assert measured(AttributeDiversity, columns) == pytest.approx(sum(missing) / 7, abs=1e-12)


def test_only_what_is_free_counts():
    """Half of the samples leave the size alone; of these three quarters are large."""
    columns = drawn(num=400, mention=1.0)
    large = ["large" in caption for caption in columns["caption"]]
    order = [i for i in range(400) if large[i]][:30] + [i for i in range(400) if not large[i]][:10]
    captions = [columns["caption"][i] for i in order]
    free = [caption.replace("large ", "").replace("small ", "") for caption in captions]
    asked = {"image": columns["image"][[*order, *order]], "caption": [*free, *captions]}
    assert measured(AttributeDiversity, asked) == pytest.approx(0.25)
    # Those that do not follow their caption are left out: here all small ones.
    asked["caption"][30:40] = ["a large shape"] * 10
    assert measured(AttributeDiversity, asked) == pytest.approx(0.5)


@pytest.mark.parametrize(("colours", "missing"), [(5, 0.0), (4, 0.2)])
def test_colours_that_another_one_leaves(colours, missing):
    """A second object beside a red one has one of five colours, not of six."""
    line, other = torch.meshgrid(torch.arange(3), torch.arange(1, 1 + colours), indexing="ij")
    zero = torch.zeros(3 * colours, dtype=torch.long)
    first = {"size": zero, "colour": zero, "shape": zero, "place": 3 * line.flatten()}
    second = {**first, "colour": other.flatten(), "place": 3 * line.flatten() + 2}
    layers = sum(layer(numbers, torch.zeros(len(zero), 2).double()) for numbers in (first, second))
    captions = ["a small red circle left of a small circle"] * len(zero)
    asked = {"image": (GREY + layers).float(), "caption": captions}
    # The mean of two attributes, of which the line is even.
    assert measured(AttributeDiversity, asked) == pytest.approx(missing / 2)


def test_nothing_free():
    with pytest.raises(ValueError, match="no sample follows a caption that leaves something free"):
        measured(AttributeDiversity, drawn(num=5, mention=1.0))


def test_other_captions_have_no_value():
    columns = {"image": torch.rand(2, 3, 32, 32), "caption": ["a cat", "a dog"]}
    for measure in (CaptionAccuracy, AttributeDiversity):
        with pytest.raises(ValueError, match="'a cat' is no caption of data=shapes"):
            measured(measure, columns)
