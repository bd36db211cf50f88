"""Drawn shapes: what is random, what is fixed, and that captions tell what is to be seen."""

import itertools
import math
import random

import pytest
import torch
from scipy.stats import chi2

from fewstep.data.shape_captions import ONE, TWO, caption_of, ends, parsed, truth
from fewstep.data.shapes import CENTRES, INK, RADII, Shapes, contrasts, coverage

TIERS = ("one", "two")


def descriptions(tier, num=2000, **options):
    """Of every picture, all that a caption can say of it."""
    return [
        parsed(caption) for caption in read(tier, num, mention=1.0, **options).values["caption"]
    ]


def read(tier, num, **options):
    return Shapes(tier=tier, num=num, **options).read()


def of_label(label):
    """The description of one object with this label."""
    found = {}
    for name, values in reversed(ONE.items()):
        label, number = divmod(label, len(values))
        found[name] = values[number]
    return found


@pytest.mark.parametrize("tier", TIERS)
def test_a_picture_depends_on_its_number_and_the_seed_alone(tier):
    few, many = read(tier, 30), read(tier, 70)
    assert torch.equal(few.images, many.images[:30])
    assert few.values["caption"] == many.values["caption"][:30]
    other = read(tier, 30, seed=1)
    assert (other.images != few.images).flatten(1).any(1).all()
    said = read(tier, 30, mention=0.0)
    assert torch.equal(said.images, few.images)
    assert said.values["caption"] != few.values["caption"]


@pytest.mark.parametrize(
    ("tier", "fingerprint"), [("one", "24c0ac1b00ab731e"), ("two", "54387d9085c93cd0")]
)
def test_the_pictures_have_not_changed(tier, fingerprint):
    """What is shipped was trained on these."""
    assert read(tier, 300).fingerprint() == fingerprint


@pytest.mark.parametrize("tier", TIERS)
def test_all_values_are_equally_frequent(tier):
    """Chi-square of each attribute, on the level of one in a thousand."""
    drawn = descriptions(tier)
    for name in (name for name in drawn[0] if name != "line"):
        values = (ONE if tier == "one" else TWO)[name]
        counts = torch.tensor([sum(one[name] == value for one in drawn) for value in values])
        assert chi_square(counts) < chi2.ppf(0.999, len(values) - 1)
    if tier == "two":
        pairs = [tuple(sorted((one["first colour"], one["second colour"]))) for one in drawn]
        counts = [pairs.count(pair) for pair in itertools.combinations(sorted(INK), 2)]
        assert sum(counts) == len(drawn)  # never one colour twice
        assert chi_square(torch.tensor(counts)) < chi2.ppf(0.999, len(counts) - 1)


def chi_square(counts):
    expected = counts.sum() / len(counts)
    return ((counts - expected) ** 2 / expected).sum().item()


def test_all_objects_are_equally_frequent():
    """The attributes are independent of each other."""
    counts = read("one", 6000).labels.bincount(minlength=324)
    assert chi_square(counts) < chi2.ppf(0.999, 323)


@pytest.mark.parametrize("tier", TIERS)
def test_captions_say_a_part_of_what_is_there(tier):
    whole, part = descriptions(tier), read(tier, 2000).values["caption"]
    said = [parsed(caption) for caption in part]
    assert all(one.items() <= full.items() for one, full in zip(said, whole, strict=True))
    for name in whole[0]:
        share = sum(name in one for one in said) / len(said)
        assert share == (1 if name == "relation" else pytest.approx(0.5, abs=0.04))


def test_the_label_is_the_whole_description():
    dataset = read("one", 500, mention=1.0)
    found = [of_label(label) for label in dataset.labels.tolist()]
    assert found == [parsed(caption) for caption in dataset.values["caption"]]


def test_captions_read_as_they_were_meant():
    assert caption_of({}) == "a shape"
    assert caption_of({"place": "centre"}) == "a shape at the centre"
    full = {"size": "small", "colour": "red", "shape": "circle", "place": "top left"}
    assert caption_of(full) == "a small red circle at the top left"
    pair = {"first colour": "red", "relation": "left of", "second shape": "square"}
    assert caption_of(pair) == "a red shape left of a square"
    assert parsed("a red shape left of a square") == pair


def test_every_caption_of_one_object_is_read_back():
    choices = [[None, *values] for values in ONE.values()]
    for values in itertools.product(*choices):
        said = {name: value for name, value in zip(ONE, values, strict=True) if value}
        assert parsed(caption_of(said)) == said


def test_captions_of_two_objects_are_read_back():
    chance = random.Random(0)
    for _ in range(2000):
        said = {"relation": chance.choice(TWO["relation"])}
        for name in TWO:
            if name not in ("relation", "line") and chance.random() < 0.5:
                said[name] = chance.choice(TWO[name])
        assert parsed(caption_of(said)) == said


@pytest.mark.parametrize(
    "caption",
    [
        *("", "red circle", "a red red circle", "a circle red", "a circle at the middle"),
        *("a pink shape", "a circle left of", "a circle left of a square at the top"),
        *("A circle", "a circle "),
    ],
)
def test_other_captions_are_refused(caption):
    with pytest.raises(ValueError, match="no caption of data=shapes"):
        parsed(caption)


def test_the_truth_of_what_was_left_out():
    assert truth("place", {"colour": "red"}) == dict.fromkeys(ONE["place"], 1 / 9)
    said = {"relation": "above", "first colour": "red"}
    assert truth("second colour", said) == dict.fromkeys(set(INK) - {"red"}, 1 / 5)
    assert truth("second colour", {"relation": "above"}) == dict.fromkeys(INK, 1 / 6)
    assert truth("line", said) == dict.fromkeys("123", 1 / 3)


def test_areas():
    """Also where an edge meets pixels in part: the ramp keeps the area, but for sharp corners."""
    radius = torch.tensor(RADII).repeat_interleave(200).double()
    centre = 16 + 2 * torch.rand(400, 2, dtype=torch.float64)
    area = coverage(radius, centre).sum((-2, -1))
    for found, factor in zip(area, (math.pi, 4, 2), strict=True):
        assert (found / radius**2).mean().item() == pytest.approx(factor, rel=0.015)
        assert torch.allclose(found, factor * radius**2, rtol=0.06)


def test_nothing_is_cut_off():
    """At the outermost places a shape has the area that it has in the middle."""
    sides = (CENTRES[0] - 1, 16.0, CENTRES[2] + 1)
    centre = torch.tensor(list(itertools.product(sides, repeat=2))).double()
    area = coverage(torch.full((9,), RADII[1]), centre).sum((-2, -1))
    assert torch.allclose(area, area[:, 4:5].expand(3, 9))


def test_every_colour_is_equally_far_from_the_ground():
    lengths = contrasts().square().sum(1)
    assert torch.allclose(lengths, lengths[:1])
    nearest = torch.cdist(contrasts(), contrasts()).fill_diagonal_(9).min()
    assert nearest == pytest.approx(0.8)


def test_pictures_show_one_object_where_captions_say():
    """Size, colour and place, told from the pixels of its colour."""
    for image, said in zip(read("one", 200).floats(), descriptions("one", 200), strict=True):
        area, x, y = seen(image, said["colour"])
        number = ONE["place"].index(said["place"])
        assert said["size"] == ("small" if area < 50 else "large")
        assert x == pytest.approx(CENTRES[number % 3], abs=1.7)
        assert y == pytest.approx(CENTRES[number // 3], abs=3.3)  # a triangle's weight lies low
        assert all(seen(image, name)[0] == 0 for name in INK if name != said["colour"])


def test_pictures_show_two_objects_as_captions_say():
    for image, said in zip(read("two", 200).floats(), descriptions("two", 200), strict=True):
        area, x, y = seen(image, said["first colour"])
        area2, x2, y2 = seen(image, said["second colour"])
        assert said["first size"] == ("small" if area < 50 else "large")
        assert said["second size"] == ("small" if area2 < 50 else "large")
        across, down = x2 - x, y2 - y
        told = {"left of": across, "right of": -across, "above": down, "below": -down}
        assert told.pop(said["relation"]) > 14
        assert min(map(abs, told.values())) < 4


def test_ends_of_lines():
    assert ends("left of", "1") == (0, 2)
    assert ends("right of", "3") == (8, 6)
    assert ends("above", "2") == (1, 7)
    assert ends("below", "1") == (6, 0)


def seen(image, colour):
    """How many pixels are covered by a colour, and where their middle is: x, y."""
    ink = torch.tensor(INK[colour])[:, None, None]
    covered = ((image - ink).abs().amax(0) < 0.15).float()
    row, column = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(32) + 0.5, indexing="ij")
    area = covered.sum().item()
    x, y = ((covered * along).sum().item() / max(area, 1) for along in (column, row))
    return area, x, y


def test_the_space_is_foreseen():
    source = Shapes(num=200)
    dataset = source.dataset()
    assert dataset.space == source.foreseen()
    assert (dataset.shape, dataset.classes) == ((3, 32, 32), 324)
    assert Shapes(tier="two").foreseen() == Shapes(tier="two", num=3).read().space
    assert len(dataset) + len(source.dataset("test")) == 200
