"""Features by name: the classifier that is meant, or the reason why there is none."""

import pytest
import torch

from fewstep.metrics.features import ClassifierFeatures, Features
from fewstep.models.classifier import ClassifierNetwork, FreshClassifier, find_classifier
from fewstep.models.space import image_space

SHIPPED = "digits_classifier"


def test_a_name_is_that_of_a_classifier():
    """A kind is a kind, anything else a classifier's name or folder."""
    assert Features.parse("classifier_features") == ClassifierFeatures()
    assert Features.parse(SHIPPED) == ClassifierFeatures(SHIPPED)
    assert Features.parse("runs/mine") == ClassifierFeatures("runs/mine")
    for one in (ClassifierFeatures(), ClassifierFeatures("runs/mine")):
        assert Features.parse(one.dump()) == one


def test_the_shipped_one():
    loaded, classifier = ClassifierFeatures().load((1, 8, 8)), find_classifier(SHIPPED)
    assert (loaded.name, loaded.classes) == (f"classifier {classifier.stamp}", 10)
    assert len(classifier.stamp) == 16
    x = torch.rand(9, 1, 8, 8)
    features, classes = classifier.measure(x)
    assert torch.equal(loaded(x).features, features)
    assert torch.equal(loaded(x).classes, classes)
    assert torch.allclose(loaded(x, batch=4).features, features, atol=1e-5)


def test_none_that_fits():
    with pytest.raises(ValueError, match=r"\(1, 8, 8\).*\(1, 28, 28\).*--features"):
        ClassifierFeatures().load((1, 28, 28))
    with pytest.raises(FileNotFoundError, match=SHIPPED):
        ClassifierFeatures("nobody").load((1, 8, 8))


def test_one_of_a_folder(tmp_path):
    small = FreshClassifier(ClassifierNetwork(channels=4, features=6))
    small.load(image_space((1, 28, 28), 7), 0).save(tmp_path / "mine")
    assert ClassifierFeatures(str(tmp_path / "mine")).load((1, 28, 28)).classes == 7
