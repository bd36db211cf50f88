"""Distances in the features of a network: what the network is given, and what becomes of its
answer.
"""

import copy
import pickle
import sys
import types

import pytest
import torch
from torch import nn

from fewstep.learning import losses
from fewstep.learning.losses import Distance, Features, Lpips
from fewstep.models.classifier import ClassifierNetwork, FreshClassifier, find_classifier
from fewstep.models.space import image_space


class Recorder(nn.Module):
    """Stands for LPIPS of a package: keeps its options and its input, answers as `shape` says."""

    made = ()

    def __init__(self, shape, **options):
        super().__init__()
        self.shape, self.options, self.seen = shape, options, None
        self.gain = nn.Parameter(torch.tensor(2.0))
        Recorder.made += (self,)

    def forward(self, a, b):
        self.seen = a.detach(), b.detach()
        return self.gain * (a - b).square().mean((1, 2, 3)).view(-1, *self.shape)


@pytest.fixture
def packages(monkeypatch):
    """Both packages, as far as they are called."""
    losses._lpips.cache_clear()
    Recorder.made = ()
    for name, shape in {"piq": (), "lpips": (1, 1, 1)}.items():
        module = types.ModuleType(name)
        module.LPIPS = lambda shape=shape, **options: Recorder(shape, **options)
        monkeypatch.setitem(sys.modules, name, module)
    yield
    losses._lpips.cache_clear()


def images(channels=3, size=8, rows=5):
    return 2 * torch.rand(2, rows, channels, size, size) - 1


@pytest.mark.parametrize(
    ("package", "options", "low"),
    [("piq", {"replace_pooling": True, "reduction": "none"}, 0.0), ("lpips", {"net": "vgg"}, -1.0)],
)
def test_each_package_gets_its_own_range_and_options(packages, package, options, low):
    a, b = images()
    a[0] = -1.0
    found = Lpips(package)(a, b)
    (network,) = Recorder.made
    assert network.options == options
    assert [x.shape for x in network.seen] == [(5, 3, 224, 224)] * 2
    torch.testing.assert_close(
        network.seen[0][0], torch.full((3, 224, 224), low), rtol=0, atol=1e-6
    )
    assert min(x.min().item() for x in network.seen) >= low - 1e-6
    assert max(x.max().item() for x in network.seen) == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(
        found, 2 * (network.seen[0] - network.seen[1]).square().mean((1, 2, 3))
    )


def test_small_images_are_resized_and_large_ones_are_not(packages):
    for size, expected in ((8, 224), (255, 224), (256, 256)):
        x = images(size=size, rows=1)
        Lpips("lpips")(*x)
        assert Recorder.made[-1].seen[0].shape[-2:] == (expected, expected)
    assert torch.equal(Recorder.made[-1].seen[0], x[0])
    ramp = torch.linspace(-1, 1, 8).expand(1, 3, 8, 8)
    Lpips("lpips")(ramp, ramp)
    wide = Recorder.made[-1].seen[0][0, 0, 0]
    torch.testing.assert_close(
        wide[14:-14].diff(), torch.full((195,), 2 / 7 * 8 / 224)
    )  # bilinear: straight lines


@pytest.mark.parametrize(
    ("shape", "seen"),
    [((64, 512), (224, 1792)), ((300, 64), (1050, 224)), ((300, 256), (300, 256))],
)
def test_images_keep_their_shape_and_their_shorter_side_counts(packages, shape, seen):
    x = torch.zeros(1, 3, *shape)
    Lpips("lpips")(x, x)
    assert tuple(Recorder.made[-1].seen[0].shape[-2:]) == seen


def test_grey_images_get_three_equal_channels(packages):
    a, b = images(channels=1)
    Lpips()(a, b)
    seen = Recorder.made[-1].seen[0]
    assert torch.equal(seen[:, 0], seen[:, 1])
    assert torch.equal(seen[:, 0], seen[:, 2])


@pytest.mark.parametrize("shape", [(4, 8, 8), (2, 8, 8), (3,)])
def test_what_is_no_image_is_refused(packages, shape):
    x = torch.zeros(2, *shape)
    with pytest.raises(ValueError, match="1 or 3 channels"):
        Lpips()(x, x)


def test_the_network_is_frozen_made_once_and_lets_the_gradient_through(packages):
    a, b = images()
    a.requires_grad_()
    distance = Lpips()
    distance(a, b).sum().backward()
    distance(a, b)
    Lpips()(a, b)
    (network,) = Recorder.made
    assert not network.training
    assert network.gain.grad is None
    assert not network.gain.requires_grad
    assert a.grad.abs().min() > 0


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    losses._lpips.cache_clear()
    monkeypatch.setitem(sys.modules, "piq", None)
    with pytest.raises(ImportError, match="pip install piq"):
        Lpips()(*images())


@pytest.mark.parametrize("distance", [Lpips(), Lpips("lpips"), Features(), Features("runs/judge")])
def test_the_choice_holds_no_network(distance):
    assert Distance.parse(distance.dump()) == distance
    assert pickle.loads(pickle.dumps(distance)) == copy.deepcopy(distance) == distance
    assert vars(distance).keys() == distance.dump().keys() - {"kind"}


def digits(rows=6):
    return images(1, 8, rows)


def test_the_distance_is_the_sum_over_the_stages():
    a, b = digits()
    judge = find_classifier("digits_classifier").network
    x, y, expected, stages = a, b, torch.zeros(6), 0
    for layer in judge.body:
        x, y = layer(x), layer(y)
        if isinstance(layer, nn.SiLU):
            u, v = (z / z.square().sum(1, keepdim=True).sqrt() for z in (x, y))
            expected, stages = expected + (u - v).square().sum(1).reshape(6, -1).mean(1), stages + 1
    assert stages == 4
    assert torch.equal(x, judge.features(a))
    found = Features()(a, b)
    torch.testing.assert_close(found, expected)
    assert (found <= 4 * 4).all()  # two unit vectors are at most 2 apart
    assert torch.equal(Features()(a, a), torch.zeros(6))
    torch.testing.assert_close(Features()(b, a), found)


def test_images_of_a_class_are_closer_than_images_of_two():
    """What the distance is for: at equal distance in pixels the classifier's features tell classes
    apart.
    """
    from fewstep.data.digits import Digits

    data = Digits().dataset("test")
    x, label = data.floats() * 2 - 1, data.labels
    first, second = x[:-1], x[1:]
    distance, same = Features()(first, second), label[:-1] == label[1:]
    assert distance[same].mean() < 0.7 * distance[~same].mean()


def test_the_gradient_reaches_the_sample_and_not_the_classifier():
    a, b = digits()
    a.requires_grad_()
    Features()(a, b).sum().backward()
    assert a.grad.isfinite().all()
    assert a.grad.abs().flatten(1).sum(1).min() > 0
    network = losses._judge("digits_classifier", a.device).network
    assert not any(p.requires_grad for p in network.parameters())
    a.grad = None
    Features()(a, a.detach().clone()).sum().backward()
    assert not a.grad.any()  # equal samples


def test_a_classifier_of_ones_own(tmp_path):
    judge = FreshClassifier(ClassifierNetwork(channels=4, features=6)).load(
        image_space((3, 10, 12), 5), seed=0
    )
    judge.save(tmp_path / "judge")
    a, b = 2 * torch.rand(2, 4, 3, 10, 12) - 1
    distance = Distance.parse({"kind": "features", "classifier": str(tmp_path / "judge")})
    found = distance(a, b)
    assert found.shape == (4,)
    assert found.min() > 0
    torch.testing.assert_close(distance(a[1:2].double(), b[1:2].double()), found[1:2])
    with pytest.raises(ValueError, match=r"\(3, 10, 12\).*\(1, 8, 8\)"):
        distance(*digits())
    with pytest.raises(FileNotFoundError, match="nobody"):
        Features("nobody")(a, b)
