"""The Fréchet distance against closed forms and against scipy."""

import numpy as np
import pytest
import scipy.linalg
import torch

from fewstep.metrics.frechet import frechet_distance, moments


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def white(n, d, seed=0):
    """Features with mean exactly 0 and covariance exactly 1, so that closed forms hold without
    sampling error.
    """
    x = normal(n, d, seed)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T).reshape(d, d))).T


def rotation(d, seed=0):
    return torch.linalg.qr(normal(d, d, seed))[0]


def published(a, b):
    """The formula as everybody writes it, with scipy's square root of a matrix."""
    a, b = a.numpy(), b.numpy()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * root)


def test_moments():
    x = normal(50, 3)
    mean, covariance = moments(x.float())
    assert mean.dtype == covariance.dtype == torch.float64
    assert np.allclose(mean, x.mean(0), atol=1e-6)
    assert np.allclose(covariance, np.cov(x.numpy(), rowvar=False), atol=1e-6)
    assert moments(normal(5, 1))[1].shape == (1, 1)


@pytest.mark.parametrize(("n", "d"), [(100, 1), (100, 8), (10, 20)])
def test_zero_for_equal_sets(n, d):
    x = normal(n, d)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6 * d)
    assert frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-6 * d)


def test_two_gaussians_of_one_dimension():
    """(m_a - m_b)² + (s_a - s_b)²."""
    a, b = 3 + 2 * white(80, 1, 1), -1 + 0.5 * white(60, 1, 2)
    assert frechet_distance(a, b) == pytest.approx(16 + 2.25, rel=1e-10)


def test_covariances_that_commute():
    """With a common basis it is ‖m_a - m_b‖² + Σ (s_a - s_b)² of the standard deviations along
    it.
    """
    s_a, s_b = torch.tensor([1.0, 2, 3, 0.1]).double(), torch.tensor([0.5, 2, 1, 4]).double()
    m_a, m_b = torch.tensor([0.0, 1, 2, 3]).double(), torch.tensor([1.0, 1, 0, 0]).double()
    basis = rotation(4, 5)
    a = white(200, 4, 1) * s_a @ basis.T + m_a
    b = white(300, 4, 2) * s_b @ basis.T + m_b
    expected = (m_a - m_b).square().sum() + (s_a - s_b).square().sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_published_formula(seed):
    mix = normal(8, 8, seed + 10)
    a, b = normal(200, 8, seed) @ mix + 1, normal(150, 8, seed + 50) @ rotation(8, seed) * 2
    assert frechet_distance(a, b) == pytest.approx(published(a, b), rel=1e-7)


def test_rotations_and_shifts_change_nothing():
    a, b = normal(100, 6, 1) * torch.arange(1, 7), normal(90, 6, 2) + 0.5
    first, turn = frechet_distance(a, b), rotation(6, 3)
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(first, rel=1e-9)
    assert frechet_distance(a + 7, b + 7) == pytest.approx(first, rel=1e-9)
    assert frechet_distance(3 * a, 3 * b) == pytest.approx(9 * first, rel=1e-9)


def test_symmetric_and_blind_to_the_order():
    a, b = normal(100, 6, 1), normal(90, 6, 2) * 2
    first = frechet_distance(a, b)
    assert frechet_distance(b, a) == pytest.approx(first, rel=1e-9)
    assert frechet_distance(a[torch.randperm(100)], b) == pytest.approx(first, rel=1e-9)


def test_a_shift_alone():
    a = normal(60, 5)
    assert frechet_distance(a, a + torch.tensor([3.0, 4, 0, 0, 0])) == pytest.approx(25, rel=1e-6)


@pytest.mark.parametrize("n", [2, 5, 12])
def test_fewer_images_than_dimensions(n):
    """Singular covariances: finite, never negative, and still the published value where scipy can
    give one.
    """
    a, b = normal(n, 16, 1), normal(n, 16, 2) * 2 + 1
    distance = frechet_distance(a, b)
    assert np.isfinite(distance)
    assert distance >= (a.mean(0) - b.mean(0)).square().sum() - 1e-6
    assert distance == pytest.approx(frechet_distance(b, a), rel=1e-6)


def test_constant_features():
    assert frechet_distance(torch.ones(5, 4), torch.zeros(7, 4)) == pytest.approx(4)


def test_float32_features_are_enough():
    a, b = normal(500, 8, 1), normal(400, 8, 2) + 0.3
    assert frechet_distance(a.float(), b.float()) == pytest.approx(frechet_distance(a, b), rel=1e-5)


def test_one_image_is_refused():
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        frechet_distance(normal(1, 4), normal(5, 4))
    with pytest.raises(ValueError, match="at least 2 images, got 0"):
        frechet_distance(normal(5, 4), normal(5, 4)[:0])
