"""Splits, limits, fractions and fingerprints."""

import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from tests.data.idx_files import write_pair

from fewstep.data.dataset import held_images
from fewstep.data.digits import Digits
from fewstep.data.idx import Idx
from fewstep.data.labels import check_labels
from fewstep.models.named import shipped_folder
from fewstep.training.start import held_out

SIZE = 1797


def ids(split="train", **options):
    return Digits(split=split, **options).dataset().ids.tolist()


def test_digits_are_sixteenths():
    """17 grey levels; 8 bits keep each of them nearer than a quarter of a level."""
    dataset = Digits(split="all").dataset()
    original = torch.from_numpy(load_digits().images)[:, None]
    assert dataset.shape == (1, 8, 8)
    assert len(dataset) == SIZE
    assert torch.equal((dataset.floats() * 16).round().double(), original)
    assert (dataset.floats() - original / 16).abs().max() <= 0.5 / 255 + 1e-6
    assert dataset.labels.tolist() == load_digits().target.tolist()
    assert dataset.floats().dtype == torch.float32


def test_floats_of_some_images():
    dataset = Digits(limit=10).dataset()
    assert torch.equal(dataset.floats(torch.tensor([3, 7])), dataset.floats()[[3, 7]])
    assert torch.equal(dataset.floats(slice(2, 5)), dataset.images[2:5].float() / 255)


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_train_and_test_are_disjoint_and_complete(seed):
    train, test = set(ids("train", split_seed=seed)), set(ids("test", split_seed=seed))
    assert not train & test
    assert train | test == set(range(SIZE)) == set(ids("all", split_seed=seed))
    assert len(test) == pytest.approx(0.2 * SIZE, abs=4 * (SIZE * 0.2 * 0.8) ** 0.5)


def test_the_split_is_the_same_on_every_call_and_another_for_every_seed():
    assert ids("test") == ids("test")
    overlap = set(ids("test")) & set(ids("test", split_seed=1))
    assert len(overlap) == pytest.approx(0.04 * SIZE, abs=4 * (SIZE * 0.04 * 0.96) ** 0.5)


def test_the_split_has_not_moved_since_the_classifier_was_trained():
    """The shipped classifier carries the fingerprint of its training images; a new hash would leak
    test images.
    """
    card = json.loads((shipped_folder("digits_classifier") / "model.json").read_text())["card"]
    dataset = Digits().dataset()
    assert dataset.fingerprint() == card["data"]["fingerprint"]
    assert len(dataset) == card["data"]["images"]


def test_an_argument_goes_before_the_split_of_the_source():
    assert Digits(split="train").dataset("test").ids.tolist() == ids("test")
    assert Digits(split="test").dataset("all").ids.tolist() == list(range(SIZE))


def test_every_class_is_in_both_splits():
    for split in ("train", "test"):
        assert Digits(split=split).dataset().labels.bincount(minlength=10).min() > 20


def test_limit_takes_the_first():
    everything = ids()
    assert ids(limit=64) == everything[:64]
    assert ids(limit=10**6) == everything
    assert ids(limit=0) == everything


def test_fractions_are_nested_and_fixed():
    everything = ids()
    shares = {share: ids(fraction=share) for share in (0.01, 0.1, 0.5, 1.0)}
    assert shares[1.0] == everything
    for small, large in ((0.01, 0.1), (0.1, 0.5), (0.5, 1.0)):
        assert set(shares[small]) < set(shares[large])
    assert ids(fraction=0.1) == shares[0.1]
    for share, found in shares.items():
        spread = (len(everything) * share * (1 - share)) ** 0.5
        assert len(found) == pytest.approx(share * len(everything), abs=4 * spread + 1e-9)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_fraction_is_an_even_choice_of_each_split(split):
    """With one hash for both, a tenth of the images would lie in the test split altogether."""
    whole, part = ids(split), ids(split, fraction=0.1)
    assert set(part) < set(whole)
    assert len(part) == pytest.approx(0.1 * len(whole), abs=4 * (len(whole) * 0.09) ** 0.5)


def test_fraction_and_limit_together():
    assert ids(fraction=0.5, limit=20) == ids(fraction=0.5)[:20]


def test_nothing_left(tmp_path):
    with pytest.raises(ValueError, match=r"no images left of 1797.*fraction=0"):
        Digits(fraction=0.0).dataset()
    write_pair(tmp_path, 0)
    with pytest.raises(ValueError, match="no images left of 0"):
        Idx(path=str(tmp_path)).dataset()


def test_select_keeps_what_belongs_together():
    dataset = Digits(split="all", limit=30).dataset()
    part = dataset.select(torch.tensor([4, 2, 4]))
    assert torch.equal(part.images, dataset.images[[4, 2, 4]])
    assert part.labels.tolist() == dataset.labels[[4, 2, 4]].tolist()
    assert part.ids.tolist() == [4, 2, 4]
    assert part.notes == dataset.notes
    assert part.notes is not dataset.notes


def test_the_fingerprint_is_of_images_labels_and_classes():
    dataset = Digits(limit=20).dataset()
    first = dataset.fingerprint()
    assert first == Digits(limit=20).dataset().fingerprint()
    pixel = dataset.images.clone()
    pixel[7, 0, 3, 3] ^= 1
    label = dataset.labels.clone()
    label[7] = (label[7] + 1) % 10
    changed = [
        held_images(pixel, dataset.labels, 10),
        held_images(dataset.images, label, 10),
        held_images(dataset.images, None, 10),
        held_images(dataset.images, dataset.labels, 11),
        held_images(dataset.images.reshape(20, 1, 4, 16), dataset.labels, 10),
        dataset.select(torch.arange(20).flip(0)),
        dataset.select(torch.arange(19)),
    ]
    assert len({first, *(other.fingerprint() for other in changed)}) == 1 + len(changed)


def test_the_fingerprint_does_not_depend_on_how_the_images_lie_in_memory():
    dataset = Digits(limit=5).dataset()
    turned = dataset.images.transpose(2, 3).contiguous().transpose(2, 3)
    assert not turned.is_contiguous()
    assert held_images(turned, dataset.labels, 10).fingerprint() == dataset.fingerprint()


def test_labels_out_of_range_are_named():
    check_labels(torch.tensor([0, 9]), 10, "here")
    check_labels(torch.zeros(0, dtype=torch.long), 10, "here")
    with pytest.raises(
        ValueError, match=r"here: 2 labels out of range 0 … 9, the first is -1 of image 1"
    ):
        check_labels(torch.tensor([3, -1, 10]), 10, "here")


def test_a_dataset_knows_its_size():
    dataset = held_images(torch.zeros(3, 2, 5, 4, dtype=torch.uint8), None, 0, torch.arange(3))
    assert len(dataset) == 3
    assert dataset.shape == (2, 5, 4)
    assert np.array_equal(dataset.floats().numpy(), np.zeros((3, 2, 5, 4), np.float32))


def test_a_split_may_be_empty_where_that_is_asked_for():
    with pytest.raises(ValueError, match="no images left"):
        Digits(fraction=0.0).dataset("test")
    assert len(Digits(fraction=0.0).dataset("test", empty=True)) == 0
    everything = Digits().read()
    assert held_out(Digits(fraction=0.0), everything) is None
    assert held_out(Digits(split="all"), everything) is None
    assert len(held_out(Digits(), everything)) == len(Digits().dataset("test"))
