"""The reader of shapes: right on all that can be drawn, and silent on what cannot."""

import itertools
import random

import pytest
import torch
import torch.nn.functional as F

from fewstep.data.shape_captions import ONE, caption_of, parsed
from fewstep.data.shape_reader import agreed, described, follows, read
from fewstep.data.shapes import GREY, JITTER, Shapes, contrasts, coverage, layer


def pictures(numbers, seed=0):
    """Images of one object each, jittered; numbers: (n, 4), of the attributes in their order."""
    generator = torch.Generator().manual_seed(seed)
    offset = JITTER * (2 * torch.rand(len(numbers), 2, generator=generator) - 1)
    layers = layer(dict(zip(ONE, numbers.T, strict=True)), offset.double())
    return (GREY + layers).float()


def everything():
    """The numbers of all 324 objects."""
    return torch.tensor(list(itertools.product(*(range(len(values)) for values in ONE.values()))))


def named(numbers):
    return {name: values[number] for (name, values), number in zip(ONE.items(), numbers.tolist())}


def blurred(images, sigma):
    along = torch.arange(-8.0, 9.0)
    kernel = torch.softmax(-(along**2) / 2 / sigma**2, 0)
    rows = F.pad(images.flatten(0, 1)[:, None], (8, 8, 8, 8), mode="replicate")
    rows = F.conv2d(F.conv2d(rows, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return rows.view_as(images)


def unreadable(images):
    return read(images) == [None] * len(images)


def test_all_objects():
    numbers = everything()
    assert read(pictures(numbers)) == [(named(one),) for one in numbers]


@pytest.mark.parametrize("tier", ["one", "two"])
def test_pictures_of_the_source(tier):
    """In 8 bits."""
    dataset = Shapes(num=400, seed=5, tier=tier, mention=1.0).read()
    found = read(dataset.floats())
    assert all(map(follows, dataset.values["caption"], found))
    assert {len(one) for one in found} == {1 if tier == "one" else 2}


@pytest.mark.parametrize(
    ("change", "share"),
    [
        (lambda x: blurred(x, 0.7), 0.98),
        (lambda x: blurred(x, 1.0), 0.95),
        (lambda x: x + 0.05 * torch.randn_like(x), 1),
        (lambda x: GREY + 0.85 * (x - GREY), 1),
        (lambda x: GREY + 1.15 * (x - GREY), 1),
    ],
    ids=["a little blurred", "blurred", "noise", "paler", "stronger"],
)
def test_what_a_decoder_does_is_forgiven(change, share):
    numbers = everything()
    found = read(change(pictures(numbers)))
    right = [one == (named(number),) for one, number in zip(found, numbers, strict=True)]
    assert sum(right) >= share * len(right)


class TestWhatCannotBeDrawn:
    def test_nothing_and_noise(self):
        assert unreadable(torch.full((1, 3, 32, 32), GREY))
        assert unreadable(torch.zeros(1, 3, 32, 32))
        assert unreadable(torch.rand(20, 3, 32, 32))
        assert unreadable(pictures(everything()[::5]) + 0.15 * torch.randn(65, 3, 32, 32))

    def test_half_transparent_ones(self):
        numbers = everything()
        assert unreadable(GREY + 0.5 * (pictures(numbers) - GREY))

    def test_blends_of_two_objects(self):
        numbers = everything()
        for distance in (1, 50, 161):
            others = pictures(numbers.roll(distance, 0), 1)
            assert unreadable((pictures(numbers) + others) / 2)

    @pytest.mark.parametrize("name", ONE)
    def test_blends_that_differ_in_one_attribute(self, name):
        """Also where their pixels hardly differ: both are then equally good."""
        numbers = everything()
        other = numbers.clone()
        place = list(ONE).index(name)
        other[:, place] = (other[:, place] + 1) % len(ONE[name])
        assert unreadable((pictures(numbers) + pictures(other)) / 2)

    def test_blobs(self):
        down, across = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
        for sigma, x in itertools.product((2.5, 3.5, 5.0), (6.5, 15.5)):
            blob = torch.exp(-((down - 15.5) ** 2 + (across - x) ** 2) / 2 / sigma**2)
            assert unreadable(GREY + blob * contrasts().float()[:, :, None, None])
        assert unreadable(blurred(pictures(everything()), 2.5))

    def test_two_objects_that_are_no_pair(self):
        """Neighbours, corners, and a third one."""
        numbers = everything()[torch.arange(0, 324, 9)]
        x = pictures(numbers)  # all at the top left
        for place in (1, 3, 4, 8):
            other = numbers.clone()
            other[:, 3] = place
            assert unreadable(x + pictures(other, 1) - GREY)
        pair = x + pictures(numbers + torch.tensor([0, 0, 0, 2]), 1) - GREY
        assert all(one is not None and len(one) == 2 for one in read(pair))
        assert unreadable(pair + pictures(numbers + torch.tensor([0, 0, 0, 7]), 1) - GREY)

    def test_a_faint_second_object(self):
        numbers = everything()[torch.arange(0, 324, 9)]
        second = pictures(numbers + torch.tensor([0, 0, 0, 2]), 1) - GREY
        assert unreadable(pictures(numbers) + 0.5 * second)

    def test_places_and_colours_between(self):
        middle = torch.tensor([[11.5, 16.0], [16.0, 20.5]]).double().repeat(3, 1)
        covered = coverage(torch.tensor([3.5, 3.5, 6.0, 6.0, 6.0, 3.5]).double(), middle)
        ink = contrasts()[torch.arange(6)]
        assert unreadable((GREY + covered.flatten(0, 1)[:, None] * ink[0, :, None, None]).float())
        between = (contrasts()[0] + contrasts()[1]) / 2  # orange
        covered = coverage(torch.full((9,), 6.0).double(), torch.full((9, 2), 16.0).double())
        assert unreadable((GREY + covered[0][:, None] * between[:, None, None]).float())

    def test_other_sizes_are_an_error(self):
        with pytest.raises(ValueError, match=r"\(3, 16, 16\), not \(3, 32, 32\)"):
            read(torch.rand(2, 3, 16, 16))


def test_an_image_is_read_by_itself():
    x = pictures(everything()[::20])
    assert read(x) == [read(one[None])[0] for one in x]
    assert read(x[:0]) == []


def test_captions_are_followed():
    """Every part of what is there is true, and nothing else is."""
    chance = random.Random(0)
    for numbers in everything()[::7]:
        whole = named(numbers)
        said = {name: whole[name] for name in whole if chance.random() < 0.5}
        assert follows(caption_of(said), (whole,))
        for name in whole:
            other = chance.choice([value for value in ONE[name] if value != whole[name]])
            assert not follows(caption_of({**said, name: other}), (whole,))
    assert not follows("a shape", None)


def test_two_objects_have_two_descriptions():
    circle = {"size": "small", "colour": "red", "shape": "circle", "place": "top left"}
    square = {"size": "large", "colour": "blue", "shape": "square", "place": "top right"}
    pair = (circle, square)
    for caption in (
        *("a red circle left of a square", "a square right of a circle"),
        *("a shape left of a large blue shape", "a blue square right of a small red circle"),
    ):
        assert follows(caption, pair)
        assert follows(caption, pair[::-1])
    for caption in (
        *("a circle right of a square", "a square left of a circle", "a shape above a shape"),
        *("a red square left of a shape", "a red circle", "a circle at the top left", "a shape"),
    ):
        assert not follows(caption, pair)
    assert not follows("a red circle left of a square", (circle,))
    whole = agreed(parsed("a square right of a shape"), pair)
    assert whole == described(pair)[1]
    assert (whole["line"], whole["first size"], whole["second colour"]) == ("1", "large", "red")


def test_other_texts_are_an_error():
    with pytest.raises(ValueError, match="'a cat' is no caption"):
        follows("a cat", None)
