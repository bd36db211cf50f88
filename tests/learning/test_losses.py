"""Distances: closed forms, limits, and gradients that stay finite."""

import math

import pytest
import torch

from fewstep.learning.losses import Absolute, Distance, Huber, PseudoHuber, Squared

DISTANCES = [
    Squared(),
    Absolute(),
    PseudoHuber(),
    PseudoHuber(0.0),
    PseudoHuber(2.0),
    Huber(),
    Huber(0.5),
]
ROWS, SHAPE = 6, (2, 3, 4)
SIZE = math.prod(SHAPE)


def pair(scale=1.0, dtype=torch.float64):
    a, b = torch.randn(2, ROWS, *SHAPE, dtype=dtype)
    return b + scale * a, b


def slopes(distance, a, b):
    """The gradient of each row's distance, flat."""
    a = a.clone().requires_grad_()
    distance(a, b).sum().backward()
    return a.grad.flatten(1)


@pytest.mark.parametrize("distance", DISTANCES, ids=repr)
def test_laws_of_a_distance(distance):
    a, b = pair()
    d = distance(a, b)
    assert d.shape == (ROWS,)
    assert (d > 0).all()
    torch.testing.assert_close(distance(b, a), d, rtol=0, atol=0)
    torch.testing.assert_close(distance(a + 1.0, b + 1.0), d)
    assert torch.equal(distance(a, a), torch.zeros(ROWS, dtype=a.dtype))
    # Each row for itself.
    torch.testing.assert_close(distance(a[2:3], b[2:3]), d[2:3], rtol=0, atol=0)
    # Further away is further.
    assert (distance(b + 2 * (a - b), b) > d).all()


@pytest.mark.parametrize("distance", DISTANCES, ids=repr)
def test_equal_samples_have_gradient_zero(distance):
    _, b = pair(dtype=torch.float32)
    assert torch.equal(slopes(distance, b, b), torch.zeros(ROWS, SIZE))
    one = b.clone()  # one row equal, the others not: no NaN leaks from row to row
    one[1:] += 1
    grown = slopes(distance, one, b)
    assert not grown[0].any()
    assert grown[1:].isfinite().all()
    assert grown[1:].ne(0).all()


@pytest.mark.parametrize("distance", DISTANCES, ids=repr)
def test_choices_come_back_from_plain_data(distance):
    assert Distance.parse(distance.dump()) == distance


def test_squared_and_absolute_are_means_over_the_elements():
    a = torch.zeros(2, *SHAPE)
    a[0], a[1] = 3.0, -2.0
    b = torch.zeros(2, *SHAPE)
    assert Squared()(a, b).tolist() == [9.0, 4.0]
    assert Absolute()(a, b).tolist() == [3.0, 2.0]
    x, y = pair()
    torch.testing.assert_close(
        Squared()(x, y), torch.stack([(x - y)[i].pow(2).mean() for i in range(ROWS)])
    )
    torch.testing.assert_close(slopes(Squared(), x, y), 2 * (x - y).flatten(1) / SIZE)
    torch.testing.assert_close(slopes(Absolute(), x, y), (x - y).flatten(1).sign() / SIZE)


def test_pseudo_huber_at_its_default_is_the_papers():
    # c = 0.00054 sqrt(d) (arXiv:2310.14189): 0.03 for CIFAR-10's 3·32·32.
    a = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    b = torch.full_like(a, 0.01)
    c = 0.00054 * math.sqrt(3072)
    assert c == pytest.approx(0.03, rel=0.01)
    assert PseudoHuber()(a, b).item() == pytest.approx(
        math.sqrt(3072 * 1e-4 + c * c) - c, rel=1e-12
    )


def test_pseudo_huber_is_of_the_whole_sample_not_of_its_elements():
    """Some code applies it to every element and averages; its gradient then ignores how wrong the
    sample is.
    """
    a, b = pair()
    distance = PseudoHuber(0.1)
    c = 0.1 * math.sqrt(SIZE)
    difference = (a - b).flatten(1)
    vector = (difference.square().sum(1) + c * c).sqrt() - c
    elementwise = ((difference.square() + c * c).sqrt() - c).mean(1)
    torch.testing.assert_close(distance(a, b), vector)
    assert (distance(a, b) / elementwise - 1).abs().min() > 0.5
    # The gradient of a whole sample points along the difference.
    cosine = torch.nn.functional.cosine_similarity(slopes(distance, a, b), difference)
    torch.testing.assert_close(cosine, torch.ones(ROWS, dtype=torch.float64))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_scale_zero_is_the_norm_and_pulls_with_length_one(size):
    a, b = pair(size)
    distance = PseudoHuber(0.0)
    torch.testing.assert_close(distance(a, b), (a - b).flatten(1).norm(dim=1))
    torch.testing.assert_close(
        slopes(distance, a, b).norm(dim=1), torch.ones(ROWS, dtype=torch.float64)
    )


def test_small_scales_approach_the_norm():
    a, b = pair()
    norm = (a - b).flatten(1).norm(dim=1)
    for scale in (1e-2, 1e-4, 1e-8):
        # sqrt(n² + c²) - c = n - c + O(c²)
        c = scale * math.sqrt(SIZE)
        gap = norm - PseudoHuber(scale)(a, b)
        torch.testing.assert_close(gap, torch.full_like(gap, c), rtol=0, atol=c * c)
    lengths = slopes(PseudoHuber(1e-8), a, b).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(ROWS, dtype=torch.float64))


def test_large_scales_approach_the_square():
    # c (sqrt(1 + n²/c²) - 1) -> n²/(2c), with n² = d·mean and c = scale·sqrt(d).
    a, b = pair()
    for scale in (1e2, 1e4):
        limit = Squared()(a, b) * math.sqrt(SIZE) / (2 * scale)
        torch.testing.assert_close(PseudoHuber(scale)(a, b), limit, rtol=1 / scale, atol=0)
        torch.testing.assert_close(
            slopes(PseudoHuber(scale), a, b),
            (a - b).flatten(1) / (scale * math.sqrt(SIZE)),
            rtol=1 / scale,
            atol=0,
        )


def test_a_scale_means_the_same_at_every_resolution():
    """The same picture at twice the size: the distance grows with sqrt(d), its shape does not
    change.
    """
    a, b = (torch.randn(ROWS, 1, 4, 4, dtype=torch.float64) for _ in range(2))
    big = [x.repeat_interleave(2, 2).repeat_interleave(2, 3) for x in (a, b)]
    torch.testing.assert_close(PseudoHuber(0.3)(*big), 2 * PseudoHuber(0.3)(a, b))
    for mean in (Squared(), Absolute()):
        torch.testing.assert_close(mean(*big), mean(a, b))


def test_points_without_an_image_shape_are_samples_too():
    a, b = torch.randn(2, ROWS, 2)
    for distance in DISTANCES:
        torch.testing.assert_close(distance(a, b), distance(a[:, None, None], b[:, None, None]))


def test_the_pseudo_huber_distance_of_a_small_error_keeps_its_digits():
    """√(e² + c²) - c in float32 is 0 where e² is below the rounding of c²; it is e²/(2c) in
    truth.
    """
    a = torch.zeros(1, 1, 2, 2)
    found = PseudoHuber(1.0)(a + 1e-6, a)
    c = 2.0
    assert found.item() == pytest.approx(4 * 1e-6**2 / (2 * c), rel=1e-5)


def test_huber_takes_one_root_per_element():
    """√(d² + c²) - c each, then the mean; the absolute error far above c, half the squared one over
    c far below.
    """
    a, b = pair()
    d = (a - b).flatten(1)
    torch.testing.assert_close(Huber(0.3)(a, b), (torch.sqrt(d**2 + 0.09) - 0.3).mean(1))
    torch.testing.assert_close(Huber(1e-9)(a, b), Absolute()(a, b), rtol=1e-6, atol=0)
    torch.testing.assert_close(Huber(1e4)(a, b) * 2e4, Squared()(a, b), rtol=1e-6, atol=0)
    one = torch.full((1, 1), 0.01, dtype=torch.float64)
    torch.testing.assert_close(Huber()(one, 0 * one).item(), (1e-4 + 1e-6) ** 0.5 - 1e-3)
    # In single precision an error of 1e-6 is not lost to the subtraction.
    small = torch.full((1, 1), 1e-6)
    assert Huber()(small, 0 * small).item() == pytest.approx(5e-10, rel=1e-4)
