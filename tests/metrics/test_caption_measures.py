"""Measures of any captions: their values on samples whose values are known."""

import pytest
import torch
from tests.tiny_parts import TINY_CLIP

from fewstep.data.captions import all_of, one_of_each
from fewstep.data.dataset import Held
from fewstep.metrics.clip_features import ClipFeatures
from fewstep.metrics.evaluation import Evaluation
from fewstep.metrics.features import Features
from fewstep.metrics.measure import ImageSet
from fewstep.metrics.nearest_caption import NearestCaption
from fewstep.metrics.unsaid_variation import UnsaidVariation
from fewstep.models.classifier import ClassifierNetwork
from fewstep.models.space import Image, Text, Texts
from fewstep.parts.clip import FreshClip

# Grey levels of images: a hand in three colours, of which the one without a name is the rarest in
# number and the most frequent under the short caption; and a tree.
LEVELS = torch.tensor([0.0, 0.2, 0.4, 1.0])
CAPTIONS = [("hand",), ("hand, red", "hand"), ("hand, blue", "hand"), ("tree",)]


def images(levels):
    return torch.as_tensor(levels).float().view(-1, 1, 1, 1).repeat(1, 3, 8, 8)


def reference(captions=CAPTIONS):
    return ImageSet({"image": images(LEVELS), "captions": captions})


def measured(measure, levels, captions, among=None):
    return measure()(ImageSet({"image": images(levels), "caption": captions}), among or reference())


def dataset():
    columns = {"image": Image((3, 8, 8)), "caption": Text(), "captions": Texts()}
    values = {
        "image": (images(LEVELS) * 255).byte(),
        "caption": [several[0] for several in CAPTIONS],
        "captions": CAPTIONS,
    }
    return Held(values, columns, torch.arange(len(CAPTIONS)))


class TestNearest:
    def test_each_caption_of_the_nearest_will_do(self):
        levels, asked = [0.21, 0.19, 0.01, 0.9], ["hand, red", "hand", "hand", "tree"]
        assert measured(NearestCaption, levels, asked) == 1
        assert measured(NearestCaption, [0.0, 0.2, 0.0, 1.0], ["hand, red"] * 4) == 0.25
        assert measured(NearestCaption, levels, ["a cat"] * 4) == 0

    def test_it_is_the_nearest_of_all_pixels(self):
        """Half of the image is that of another, which is further away in the whole."""
        mixed = images([0.2])
        mixed[..., :3] = 1.0
        columns = {"image": mixed, "caption": ["hand, blue"]}
        assert NearestCaption()(ImageSet(columns), reference()) == 1


class TestVariation:
    """Of "hand" half are without a colour, a quarter red, a quarter blue."""

    def test_as_the_data(self):
        assert measured(UnsaidVariation, [0.0, 0.05, 0.25, 0.5], ["hand"] * 4) == 0

    @pytest.mark.parametrize(("level", "missing"), [(0.0, 0.5), (0.2, 0.75), (0.4, 0.75)])
    def test_one_mode(self, level, missing):
        assert measured(UnsaidVariation, [level] * 5, ["hand"] * 5) == pytest.approx(missing)

    def test_a_blur_of_all_is_one_mode(self):
        assert measured(UnsaidVariation, [0.15] * 5, ["hand"] * 5) == pytest.approx(0.75)

    def test_only_what_is_free_counts(self):
        """A colour that was asked for says nothing, nor does the tree."""
        levels = [0.0, 0.0, 0.2, 0.4, *[0.4] * 6, *[1.0] * 9]
        asked = [*["hand"] * 4, *["hand, blue"] * 6, *["tree"] * 9]
        assert measured(UnsaidVariation, levels, asked) == 0

    def test_what_is_not_of_its_caption_is_the_nearest_that_is(self):
        """A tree under "hand" is nearest to the blue one."""
        levels = [0.0, 0.0, 0.2, 1.0]
        assert measured(UnsaidVariation, levels, ["hand"] * 4) == 0

    def test_unlike_captions_are_counted_together(self):
        """Of two things red and blue are even; each alone is of one colour, both are of both."""
        captions = [("hand, red", "hand"), ("hand, blue", "hand")]
        captions += [("foot, red", "foot"), ("foot, blue", "foot")]
        among = reference(captions)
        asked = ["hand", "hand", "foot", "foot"]
        assert measured(UnsaidVariation, [0.0, 0.0, 1.0, 1.0], asked, among) == 0
        assert measured(UnsaidVariation, [0.0, 0.0, 0.4, 0.4], asked, among) == 0.5

    @pytest.mark.parametrize("asked", ["tree", "hand, red", "a cat"])
    def test_nothing_free(self, asked):
        with pytest.raises(ValueError, match="no caption of the samples leaves unsaid"):
            measured(UnsaidVariation, [0.2], [asked])


class TestAsked:
    """What a model is asked for, of captions of a reference."""

    def test_one_of_each_row_in_turn(self):
        data = dataset()
        found = one_of_each(data, 400, seed=3)
        assert all(caption in CAPTIONS[i % 4] for i, caption in enumerate(found))
        short = found.count("hand") - 100  # those that could be longer
        assert short == pytest.approx(100, abs=30)
        assert found[:40] == one_of_each(data, 40, seed=3)
        assert found != one_of_each(data, 400, seed=4)

    def test_a_few_are_spread_evenly(self):
        """Files in the order of their classes: the first ones would be of one class."""
        assert one_of_each(dataset(), 1, 0) == ["hand"]
        found = [one_of_each(dataset(), 2, seed)[1] for seed in range(9)]
        assert set(found) == {"hand, blue", "hand"}

    def test_it_is_what_an_evaluation_asks(self):
        evaluation = Evaluation.against(
            dataset(), measures=[UnsaidVariation(), NearestCaption()], num=6, seed=3
        )
        assert list(evaluation.captions) == one_of_each(dataset(), 6, seed=3)
        assert evaluation.reference.columns["captions"] == CAPTIONS

    def test_a_caption_alone_is_all_there_are(self):
        data = dataset()
        del data.columns["captions"], data.values["captions"]
        assert all_of(data, torch.tensor([1, 3])) == [("hand, red",), ("tree",)]
        assert one_of_each(data, 5, 0) == ["hand", "hand, red", "hand, blue", "tree", "hand"]
        known = Evaluation.against(data, measures=[NearestCaption()]).reference
        assert known.columns["captions"] == [(several[0],) for several in CAPTIONS]

    def test_without_any(self):
        data = Held(
            {"image": torch.zeros(2, 3, 8, 8).byte()}, {"image": Image((3, 8, 8))}, torch.arange(2)
        )
        assert one_of_each(data, 3, 0) == []
        evaluation = Evaluation.against(data, measures=[NearestCaption()])
        with pytest.raises(ValueError, match="the reference has no captions"):
            evaluation.served(["image", "caption"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a text encoder, made but not trained."""
    pytest.importorskip("transformers")
    found = tmp_path_factory.mktemp("clip") / "clip"
    tower = ClassifierNetwork(channels=4, features=6, dropout=0.5)
    FreshClip(TINY_CLIP, tower, merges=0).load_for(dataset(), 0).save(found)
    return found


class TestFeatures:
    """Those of the pictures that a text encoder was trained with."""

    def test_they_are_what_captions_are_compared_with(self, folder):
        chosen = Features.parse({"kind": "clip_features", "path": str(folder)})
        assert chosen == ClipFeatures(str(folder))
        assert chosen.channels() == 3
        network = chosen.load((3, 8, 8))
        x = torch.rand(5, 3, 8, 8)
        found = network(x)
        assert (found.features.shape, found.classes, network.classes) == ((5, 16), None, 0)
        expected = network.clip.network.heads.pictures(2 * x - 1)
        expected = expected / expected.norm(dim=1, keepdim=True) / 0.07  # before it is trained
        assert torch.allclose(found.features, expected, atol=1e-4)
        assert torch.allclose(network(x, batch=2).features, expected, atol=1e-4)
        assert not found.features.requires_grad

    def test_the_name_tells_the_weights(self, folder):
        one, other = (ClipFeatures(str(folder)).load((3, 8, 8)) for _ in range(2))
        assert one.name == other.name
        with torch.no_grad():
            other.clip.network.heads.pictures.body[0].bias[0] += 1
        assert type(other)(other.clip).name != one.name

    def test_what_does_not_fit(self, folder, tmp_path):
        with pytest.raises(ValueError, match=r"\(3, 8, 8\), these have \(3, 16, 16\)"):
            ClipFeatures(str(folder)).load((3, 16, 16))
        with pytest.raises(ValueError, match="needs path="):
            ClipFeatures().load((3, 8, 8))
        with pytest.raises(FileNotFoundError):
            ClipFeatures(str(tmp_path / "nothing")).load((3, 8, 8))
