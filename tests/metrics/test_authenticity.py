"""Nearest neighbours, and what is counted as a copy, against loops that cannot be wrong."""

import pytest
import torch

from fewstep.metrics.authenticity import Authenticity, nearest, neighbours
from fewstep.metrics.features import Extracted, Extractor
from fewstep.metrics.measure import ImageSet


def distance(a, b):
    return (a.double() - b.double()).square().mean().sqrt()


def images(n, seed=0):
    return torch.rand(n, 2, 3, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunk", [1, 3, 1024])
def test_nearest_is_the_smallest_distance(chunk):
    x, reference = images(7), images(40, seed=1)
    expected = torch.stack([torch.stack([distance(a, b) for b in reference]).min() for a in x])
    found = nearest(x, reference, chunk)
    assert found.shape == (7,)
    assert torch.allclose(found, expected, rtol=1e-9)


def test_an_image_of_the_reference_is_at_distance_zero():
    reference = images(64, seed=1)
    assert nearest(reference[10:20], reference).max() < 1e-6
    assert nearest(reference[:1] + 0.25, reference[:1]).item() == pytest.approx(0.25, rel=1e-6)


def test_the_nearest_of_the_same_images_is_another_one():
    images = torch.tensor([0.0, 0.1, 0.4]).view(3, 1, 1, 1)
    assert torch.allclose(
        nearest(images, images), torch.tensor([0.1, 0.1, 0.3], dtype=torch.float64), atol=1e-7
    )


@pytest.mark.parametrize("chunk", [2, 1024])
def test_the_place_of_the_nearest(chunk):
    x, reference = images(9).flatten(1), images(30, seed=1).flatten(1)
    distances, places = neighbours(x, reference, chunk)
    for i in range(9):
        all_of_them = (reference - x[i]).square().sum(1).sqrt()
        assert places[i] == all_of_them.argmin()
        assert distances[i] == pytest.approx(all_of_them.min().item(), rel=1e-4)


def test_one_image_has_no_other():
    with pytest.raises(ValueError, match="no nearest neighbour among 1 images"):
        neighbours(x := torch.ones(1, 3), x)
    assert neighbours(torch.zeros(1, 3), torch.ones(1, 3))[0].item() == pytest.approx(3**0.5)


class Plain(Extractor):
    """Pixels are features."""

    name, classes = "plain", 0

    def __call__(self, images, batch=512):
        return Extracted(images.flatten(1))


def authenticity(samples, reference):
    columns = [{"image": torch.tensor(x).view(-1, 1, 1, 1)} for x in (samples, reference)]
    return Authenticity()(*(ImageSet(column, Plain()) for column in columns))


def test_a_sample_is_a_copy_where_it_is_nearer_than_the_reference_s_own():
    """The reference at 0, 1 and 3: its own nearest are 1, 1 and 2 away."""
    reference = [0.0, 1.0, 3.0]
    assert authenticity([-0.9, 1.9, 4.9], reference) == 0
    assert authenticity([-1.1, 5.1], reference) == 1
    assert authenticity([0.0, -1.1, 2.4, 5.1], reference) == 0.5


def test_of_samples_of_the_same_distribution_a_third_is_authentic_on_a_line():
    """The sample has a reference point on either side, the nearer of which has another one beyond
    it: all three gaps are alike, and the sample is authentic where the last is the smallest.
    """
    generator = torch.Generator().manual_seed(0)
    samples = torch.rand(4000, generator=generator, dtype=torch.float64).tolist()
    reference = torch.rand(4000, generator=generator, dtype=torch.float64).tolist()
    assert authenticity(samples, reference) == pytest.approx(1 / 3, abs=0.03)
