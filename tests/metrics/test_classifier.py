"""The classifier: the shipped one is good, and a saved one is the same or refused."""

import json

import pytest
import torch

from fewstep.data.digits import Digits
from fewstep.data.shapes import Shapes
from fewstep.models.classifier import (
    Classifier,
    ClassifierNetwork,
    FreshClassifier,
    find_classifier,
    load_classifier,
)
from fewstep.models.named import shipped_folder
from fewstep.models.space import image_space


@pytest.fixture(scope="module")
def shipped():
    return load_classifier(shipped_folder("digits_classifier"))


@pytest.fixture(scope="module")
def held_out():
    return Digits().dataset("test")


@pytest.fixture
def small():
    return FreshClassifier(ClassifierNetwork(channels=4, features=6)).load(
        image_space((3, 10, 12), 5), seed=0
    )


@pytest.fixture
def folder(small, tmp_path):
    small.save(tmp_path / "judge")
    return tmp_path / "judge"


def test_the_shipped_one_knows_digits_that_it_never_saw(shipped, held_out):
    _, seen = shipped.measure(held_out.floats())
    right = (seen == held_out.labels).double().mean().item()
    assert right >= 0.97
    for label in range(10):
        mine = held_out.labels == label
        assert (seen[mine] == label).double().mean() >= 0.85


def test_the_shipped_one_of_shapes_was_trained_on_the_shapes_of_today():
    """The right size, colour, shape and place of pictures that it never saw."""
    judge = find_classifier(Shapes.judge)
    dataset = Shapes(limit=200).dataset("test")
    assert judge.shape == dataset.shape
    assert judge.classes == dataset.classes
    _, seen = judge.measure(dataset.floats())
    assert (seen == dataset.labels).double().mean() >= 0.99
    assert judge.card["data"]["fingerprint"] == Shapes().dataset().fingerprint()


def test_features_do_not_depend_on_the_batch(shipped, held_out):
    x = held_out.floats()[:50]
    features, seen = shipped.measure(x)
    parts, seen_in_parts = shipped.measure(x, batch=7)
    assert features.shape == (50, 64)
    assert torch.allclose(features, parts, atol=1e-5)
    assert torch.equal(seen, seen_in_parts)


def test_measuring_switches_dropout_off(small):
    x = torch.rand(20, 3, 10, 12)
    small.network.train()
    assert torch.equal(small.measure(x)[1], small.measure(x)[1])
    assert not small.measure(x)[0].requires_grad


def test_the_head_sees_the_features(small):
    x = torch.rand(4, 3, 10, 12)
    features, seen = small.measure(x)
    assert features.shape == (4, 6)
    assert torch.equal(small.network.head(features).argmax(1), seen)
    assert torch.allclose(small.network(x * 2 - 1), small.network.head(features))


def test_a_wrong_shape_is_refused(shipped):
    with pytest.raises(ValueError, match=r"\(1, 8, 8\).*\(1, 28, 28\)"):
        shipped.measure(torch.rand(2, 1, 28, 28))


def test_unlabelled_data_is_refused():
    with pytest.raises(ValueError, match="labelled"):
        FreshClassifier().load(image_space((1, 8, 8), 0), 0)


def test_a_fresh_one_depends_on_the_seed_alone():
    torch.manual_seed(5)
    a = FreshClassifier().load(image_space((1, 8, 8), 10), 3).network.state_dict()
    state = torch.get_rng_state()
    b = FreshClassifier().load(image_space((1, 8, 8), 10), 3).network.state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a[key], b[key]) for key in a)
    c = FreshClassifier().load(image_space((1, 8, 8), 10), 4).network.state_dict()
    assert any(not torch.equal(a[key], c[key]) for key in a)


def test_saving_keeps_numbers_and_gives_a_stamp(small, folder):
    x = torch.rand(9, 3, 10, 12)
    again = load_classifier(folder)
    assert isinstance(again, Classifier)
    assert (again.shape, again.classes, again.card) == ((3, 10, 12), 5, {})
    assert again.network.spec == small.network.spec
    for mine, other in zip(small.measure(x), again.measure(x), strict=True):
        assert torch.equal(mine, other)
    described = json.loads((folder / "model.json").read_text())
    assert again.stamp == described["weights"]["model.safetensors"][:16]
    assert load_classifier(folder).stamp == again.stamp


def test_other_weights_have_another_stamp(small, folder, tmp_path):
    with torch.no_grad():
        small.network.head[1].bias[0] += 1e-6
    small.save(tmp_path / "other")
    assert load_classifier(tmp_path / "other").stamp != load_classifier(folder).stamp


def test_a_run_s_folder_is_its_student(folder):
    run = folder.parent / "run"
    run.mkdir()
    folder.rename(run / "student")
    assert load_classifier(run).classes == 5


def test_damaged_weights_are_refused(folder):
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_classifier(folder)
    file.write_bytes(content[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_classifier(folder)


def test_foreign_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model\.json"):
        load_classifier(tmp_path)
    (tmp_path / "model.json").write_text('{"network": 1}')
    with pytest.raises(ValueError, match="no classifier"):
        load_classifier(tmp_path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(ValueError, match=r"model\.json is damaged"):
        load_classifier(tmp_path)


def test_a_newer_format_is_refused(folder):
    described = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(described | {"format": 2}))
    with pytest.raises(ValueError, match="format 2"):
        load_classifier(folder)


@pytest.mark.parametrize("key", ["shape", "classes", "weights", "card"])
def test_an_incomplete_description_is_refused(folder, key):
    described = json.loads((folder / "model.json").read_text())
    del described[key]
    (folder / "model.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"model\.json"):
        load_classifier(folder)


def test_weights_of_another_network_are_refused(folder):
    described = json.loads((folder / "model.json").read_text())
    described["classifier"]["features"] = 7
    (folder / "model.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"model\.(safetensors|json)"):
        load_classifier(folder)
