"""Quality with its protocol: what it measures, and that unlike protocols are told apart."""

import pytest
import torch

from fewstep.data.dataset import held_images
from fewstep.data.digits import Digits
from fewstep.metrics.diversity import diversity
from fewstep.metrics.frechet import frechet_distance
from fewstep.metrics.protocol import ROUNDING, Reference, comparable, find_judge, rounded
from fewstep.models.classifier import ClassifierNetwork, FreshClassifier
from fewstep.models.space import image_space

PROTOCOL = {
    "extractor": "classifier a",
    "reference": "b",
    "reference_images": 5,
    "num": 4,
    "rounding": ROUNDING,
}


@pytest.fixture(scope="module")
def judge():
    return find_judge(None, (1, 8, 8))


@pytest.fixture(scope="module")
def dataset():
    return Digits(limit=300).dataset()


@pytest.fixture(scope="module")
def reference(dataset, judge):
    return Reference.of(dataset, judge)


def test_the_reference_against_itself(reference, dataset):
    quality = reference.quality(dataset.floats(), dataset.labels)
    assert quality["frechet"] == pytest.approx(0, abs=1e-4)
    assert quality["diversity"] == pytest.approx(1)
    assert quality["confirmed"] > 0.97


def test_the_numbers_are_what_they_say(reference, judge, dataset):
    images = Digits(limit=80).dataset("test").floats()
    labels = torch.arange(80) % 10
    quality = reference.quality(images, labels)
    features, seen = judge.measure(images)
    assert quality["frechet"] == pytest.approx(
        frechet_distance(features, judge.measure(dataset.floats())[0]), rel=1e-6
    )
    assert quality["confirmed"] == (seen == labels).double().mean().item()
    expected = diversity(images, labels) / diversity(dataset.floats(), dataset.labels)
    assert quality["diversity"] == pytest.approx(expected, rel=1e-6)


def test_without_labels_the_distance_alone(reference, dataset):
    quality = reference.quality(dataset.floats()[:50], None)
    assert quality["confirmed"] is None
    assert quality["diversity"] is None
    assert quality["frechet"] > 0


def test_labels_that_do_not_fit_are_refused(reference, dataset):
    images = dataset.floats()[:20]
    with pytest.raises(ValueError, match="7 labels"):
        reference.quality(images, torch.arange(7))
    with pytest.raises(ValueError, match="out of range"):
        reference.quality(images, torch.arange(20) - 5)


def test_the_protocol_of_a_result(reference, judge, dataset):
    protocol = reference.quality(dataset.floats()[:50], None, seed=3)["protocol"]
    assert protocol == {
        "extractor": f"classifier {judge.stamp}",
        "reference": dataset.fingerprint(),
        "reference_images": 300,
        "num": 50,
        "rounding": ROUNDING,
        "seed": 3,
    }
    assert len(judge.stamp) == 16


def test_rounding_to_8_bits():
    levels = torch.arange(256) / 255
    assert torch.equal(rounded(levels), levels)
    assert torch.equal(rounded(levels + 0.4 / 255), levels)
    x = torch.rand(1000)
    assert (rounded(x) - x).abs().max() <= 0.5 / 255 + 1e-7
    assert torch.equal((rounded(x) * 255).round(), (x * 255).round())


def test_images_are_measured_as_a_file_would_hold_them(reference, dataset):
    images = dataset.floats()[:60]
    noise = (torch.rand(images.shape) - 0.5) * 0.8 / 255
    noisy = (images + noise).clamp(0, 1)
    assert not torch.equal(noisy, images)
    assert reference.quality(noisy, None) == reference.quality(images, None)


@pytest.mark.parametrize("key", list(PROTOCOL))
def test_comparable_names_the_first_difference(key):
    assert comparable(PROTOCOL, dict(PROTOCOL)) is None
    other = PROTOCOL | {key: 9}
    reason = comparable(PROTOCOL, other)
    assert reason.startswith(f"{key}:")
    assert str(PROTOCOL[key]) in reason
    assert "9" in reason
    missing = {k: v for k, v in PROTOCOL.items() if k != key}
    assert comparable(PROTOCOL, missing).startswith(f"{key}:")


def test_comparable_goes_by_what_makes_numbers_unlike():
    everything = dict.fromkeys(PROTOCOL, 0)
    assert comparable(PROTOCOL, everything).startswith("extractor:")
    assert (
        comparable(PROTOCOL | {"seed": 1, "sampler": "x"}, PROTOCOL | {"seed": 2, "sampler": "y"})
        is None
    )


def test_a_reference_needs_the_labels_of_the_classifier(dataset, judge):
    with pytest.raises(ValueError, match="labels of 10 classes"):
        Reference.of(held_images(dataset.images, None, 10), judge)
    with pytest.raises(ValueError, match="labels of 10 classes"):
        Reference.of(held_images(dataset.images, dataset.labels, 11), judge)


def test_find_judge(tmp_path, judge):
    assert judge.shape == (1, 8, 8)
    assert find_judge("digits_classifier", (1, 8, 8)).stamp == judge.stamp
    with pytest.raises(ValueError, match=r"\(1, 8, 8\).*\(1, 28, 28\).*--features"):
        find_judge(None, (1, 28, 28))
    with pytest.raises(FileNotFoundError, match="digits_classifier"):
        find_judge("nobody", (1, 8, 8))
    mine = FreshClassifier(ClassifierNetwork(channels=4, features=6)).load(
        image_space((1, 28, 28), 10), 0
    )
    mine.save(tmp_path / "mine")
    assert find_judge(tmp_path / "mine", (1, 28, 28)).classes == 10
