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


def any_classes(seed, n):
    return torch.randint(4, (n,), generator=torch.Generator().manual_seed(seed))


def of_classes(seed, labels, d=3, apart=2.0):
    """Rows around a centre of their class."""
    centres = apart * normal(99, 4, d)
    return normal(seed, len(labels), d) + centres[labels]


def stratified(x, y, x_labels):
    """The estimate by its definition: E k(x, x') = Σ p_c p_e E k of classes c and e, each by all
    pairs that there are.
    """

    def k(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    mean = 0.0
    for c, e in itertools.product(x_labels.unique().tolist(), repeat=2):
        one, other = x[x_labels == c], x[x_labels == e]
        pairs = k(one, other)
        if c == e:
            pairs = pairs[~torch.eye(len(one), dtype=torch.bool)]
        mean += len(one) * len(other) / len(x) ** 2 * pairs.mean().item()
    its = k(y, y)[~torch.eye(len(y), dtype=torch.bool)].mean().item()
    return mean + its - 2 * k(x, y).mean().item()


@pytest.mark.parametrize("n", [24, 26, 40])
def test_classes_in_turn_are_counted_as_if_they_were_drawn(n):
    labels = torch.arange(n) % 4
    x, y = of_classes(0, labels), of_classes(1, any_classes(1, 50))
    found = kernel_distance(x, y, labels)
    assert found.value == pytest.approx(stratified(x, y, labels), rel=1e-10)
    assert abs(found.value - kernel_distance(x, y).value) > 0.1
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    shuffled = kernel_distance(x[order], y, labels[order]).value
    assert shuffled == pytest.approx(found.value, rel=1e-10)


def test_the_interval_of_classes_in_turn():
    labels = torch.arange(60) % 4
    x, y = of_classes(0, labels), of_classes(1, any_classes(1, 80))
    order = labels.argsort(stable=True)
    parts = [order[first::20] for first in range(20)]
    without = []
    for i, its in enumerate(y.tensor_split(20)):
        kept = torch.cat(parts[:i] + parts[i + 1 :])
        assert len(its) == 4
        others = torch.cat([*y.tensor_split(20)[:i], *y.tensor_split(20)[i + 1 :]])
        without.append(stratified(x[kept], others, labels[kept]))
    found = torch.tensor(without, dtype=torch.float64)
    variance = 19 / 20 * (found - found.mean()).square().sum()
    half = kernel_distance(x, y, labels).half
    assert half == pytest.approx(1.96 * variance.sqrt().item(), rel=1e-8)


@pytest.mark.parametrize("labels", [[0] * 9 + [1] * 11, [2] * 20, [0, 0, 0, 1]])
def test_labels_that_are_not_even_tell_nothing(labels):
    labels = torch.tensor(labels)
    x, y = of_classes(0, labels), of_classes(1, any_classes(1, 30))
    assert kernel_distance(x, y, labels) == kernel_distance(x, y)


@pytest.mark.parametrize("labels", [[0, 1] * 2, [0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1]])
def test_two_of_a_class_are_enough_for_a_value(labels):
    labels = torch.tensor(labels)
    x, y = of_classes(0, labels), of_classes(1, any_classes(1, 30))
    value, half = kernel_distance(x, y, labels)
    assert value == pytest.approx(stratified(x, y, labels), rel=1e-10)
    assert half is None


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 1, 2, 2]])
def test_one_of_a_class_is_not(labels):
    labels = torch.tensor(labels)
    x, y = of_classes(0, labels), of_classes(1, any_classes(1, 30))
    with pytest.raises(ValueError, match="needs two images of each class"):
        kernel_distance(x, y, labels)
    with pytest.raises(ValueError, match="needs two images of each class"):
        kernel_distance(y, x, None, labels)


def test_classes_in_turn_have_no_bias():
    """Of 400 draws of the same classes in turn the mean is 0 where the plain estimate's is below
    it, by (1 - 1/C)/(n - 1) of what k of a class has above k of two; and most intervals hold 0.
    """
    labels, found, plain, held = torch.arange(24) % 4, [], [], 0
    for seed in range(400):
        x = of_classes(seed, labels)
        y = of_classes(10_000 + seed, any_classes(seed, 40))
        value, half = kernel_distance(x, y, labels)
        held += abs(value) <= half
        found.append(value)
        plain.append(kernel_distance(x, y).value)
    error = torch.tensor(found).std().item() / 400**0.5
    assert abs(sum(found) / 400) < 3 * error
    assert sum(plain) / 400 < -6 * error
    assert held / 400 > 0.85


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
