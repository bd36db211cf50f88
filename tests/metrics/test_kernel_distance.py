"""The kernel distance: its definition, no bias, an interval that holds; and when it is taken."""

import itertools

import pytest
import torch
from tests.metrics.test_measure import Corner, drawn, image_set

from fewstep.data.dataset import held_images
from fewstep.metrics.evaluation import Evaluation
from fewstep.metrics.frechet import Frechet, frechet_distance
from fewstep.metrics.kernel_distance import KernelDistance, kernel_distance


def normal(seed, n, d=4, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) + shift


def by_definition(x, y):
    def k(a, b):
        return (float(a @ b) / x.shape[1] + 1) ** 3

    pairs = [k(a, b) for a, b in itertools.permutations(x, 2)]
    its = [k(a, b) for a, b in itertools.permutations(y, 2)]
    both = [k(a, b) for a, b in itertools.product(x, y)]
    return sum(pairs) / len(pairs) + sum(its) / len(its) - 2 * sum(both) / len(both)


@pytest.mark.parametrize(("n", "m"), [(3, 3), (5, 30), (23, 41), (50, 25)])
def test_its_definition(n, m):
    x, y = normal(0, n), normal(1, m, shift=0.5)
    assert kernel_distance(x, y).value == pytest.approx(by_definition(x, y), rel=1e-10)


def test_the_interval_is_that_of_estimates_without_a_block():
    x, y = normal(0, 60), normal(1, 80, shift=0.3)
    xs, ys = x.tensor_split(20), y.tensor_split(20)
    without = torch.tensor(
        [
            by_definition(torch.cat(xs[:i] + xs[i + 1 :]), torch.cat(ys[:i] + ys[i + 1 :]))
            for i in range(20)
        ],
        dtype=torch.float64,
    )
    variance = 19 / 20 * (without - without.mean()).square().sum()
    assert kernel_distance(x, y).half == pytest.approx(1.96 * variance.sqrt().item(), rel=1e-8)


def expected(shift, d=4):
    """E k(x, x') + E k(y, y') - 2 E k(x, y) of x ~ N(0, 1), y ~ N(shift, 1), in closed form: of u =
    x·y/d the moments are those of sums of products.
    """

    def third(a, b):
        """E (u + 1)³ of x ~ N(a, 1), y ~ N(b, 1), a and b the same in each of d dimensions."""
        # cumulants of one product z = xy with means a, b: add over dimensions
        m1 = a * b
        m2 = (1 + a * a) * (1 + b * b)
        m3 = (a**3 + 3 * a) * (b**3 + 3 * b)
        k1, k2, k3 = m1, m2 - m1**2, m3 - 3 * m2 * m1 + 2 * m1**3
        mean, var, skew = k1, k2 / d, k3 / d**2
        centre = mean + 1
        return centre**3 + 3 * centre * var + skew

    return third(0, 0) + third(shift, shift) - 2 * third(0, shift)


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_it_has_no_bias_and_its_interval_holds(shift):
    """Over 300 draws of 25 samples its mean is the true value, where the Fréchet distance's is far
    above its own; and nearly 95 % of the intervals hold it.
    """
    true = expected(shift)
    found, distances, held = [], [], 0
    for seed in range(300):
        x, y = normal(seed, 25), normal(10_000 + seed, 25, shift=shift)
        value, half = kernel_distance(x, y)
        found.append(value)
        held += abs(value - true) <= half
        distances.append(frechet_distance(x, y))
    values = torch.tensor(found)
    error = values.std().item() / 300**0.5
    assert abs(values.mean().item() - true) < 3 * error
    assert sum(distances) / 300 > 4 * shift**2 + 0.2  # the true one is d shift²
    assert held / 300 > 0.85


def test_of_two_images_there_is_none():
    with pytest.raises(ValueError, match="a kernel distance needs 3 images, got 2 and 9"):
        kernel_distance(normal(0, 2), normal(1, 9))


def test_of_many_images_some_are_taken_evenly():
    reference, samples = image_set(drawn(0)), image_set(drawn(1))
    whole = KernelDistance()(samples, reference)
    few = KernelDistance(most=30)(samples, reference)
    x, y = (
        one.features.double()[torch.linspace(0, 89, 30).round().long()]
        for one in (samples, reference)
    )
    assert few == kernel_distance(x, y).value
    assert few != whole


class Named(Corner):
    dimensions, label = 5, "corner"


@pytest.mark.parametrize(("num", "few"), [(5, True), (6, False)])
def test_it_is_taken_where_images_are_few(monkeypatch, num, few):
    """With its interval, and a warning of the other; under the names of features that have one."""
    columns = drawn(0)
    data = held_images((columns["image"] * 255).to(torch.uint8), columns["label"], 3)
    monkeypatch.setattr("fewstep.metrics.evaluation.features_for", lambda shape: Given())
    evaluation = Evaluation.against(data, num=num)
    images = drawn(1)["image"][:num]
    values, protocol = evaluation.measured({"image": images})
    assert ("kernel_distance" in values) == few
    assert list(protocol.intervals) == (["kernel_distance"] if few else [])
    told = protocol.told()
    if few:
        assert told["warning"].startswith("5 images in 5 dimensions: their number makes most")
        assert list(values)[:2] == ["frechet", "kernel_distance"]
        assert protocol.measures["kernel_distance"].name == "kd_corner"
    else:
        assert "warning" not in told
    assert protocol.measures["frechet"].name == "fd_corner"
    chosen = Evaluation.against(data, None, [Frechet()], num=num)
    assert list(chosen.measured({"image": images})[0]) == ["frechet"]


class Given:
    def channels(self):
        return None

    def load(self, shape):
        return Named()
