"""Diversity against loops that cannot be wrong."""

import itertools

import pytest
import torch

from fewstep.metrics.diversity import diversity


def distance(a, b):
    return (a.double() - b.double()).square().mean().sqrt()


def images(n, seed=0):
    return torch.rand(n, 2, 3, 4, generator=torch.Generator().manual_seed(seed))


def test_diversity_is_the_mean_over_pairs_then_over_classes():
    x, labels = images(12), torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 4, 4, 4, 7])
    means = []
    for label in (0, 1, 4):  # class 7 has one image: no pair
        group = x[labels == label]
        pairs = [distance(a, b) for a, b in itertools.combinations(group, 2)]
        means.append(torch.stack(pairs).mean())
    assert diversity(x, labels) == pytest.approx(torch.stack(means).mean().item(), rel=1e-12)


def test_diversity_of_two_images():
    x = torch.stack([torch.zeros(1, 2, 2), torch.full((1, 2, 2), 0.25)])
    assert diversity(x, torch.zeros(2)) == pytest.approx(0.25)


def test_copies_have_no_diversity():
    x = images(1).repeat(6, 1, 1, 1)
    assert diversity(x, torch.arange(6) % 2) == 0
    mixed = torch.cat([x, images(6, seed=1)])
    labels = torch.tensor([0] * 6 + [1] * 6)
    assert diversity(mixed, labels) == pytest.approx(
        diversity(images(6, seed=1), torch.ones(6)) / 2
    )


def test_diversity_needs_a_pair():
    with pytest.raises(ValueError, match="two images of one class"):
        diversity(images(3), torch.arange(3))
