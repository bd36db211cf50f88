"""The picture tower of a trained text encoder, as the network in whose features sets of images are
compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.metrics.features import Extracted, Extractor, Features
from fewstep.models.fingerprint import weights_hash
from fewstep.parts.clip import Clip
from fewstep.text import place


@dataclass(frozen=True)
class ClipFeatures(Features):
    """The vectors of pictures that a text encoder was trained with (`method=contrastive`), as they
    are compared with captions: of unit length, times what similarities are multiplied by. They
    tell what captions tell, and need no classes.
    """

    path: str = ""
    """The folder of the run or of what it made."""

    def channels(self) -> int:
        return int(self._clip().shape[0])

    def load(self, shape: tuple[int, ...]) -> Extractor:
        clip = self._clip()
        if tuple(clip.shape) != tuple(shape):
            raise ValueError(
                f"{self.path} was trained with images of shape {clip.shape}, these have "
                f"{tuple(shape)}"
            )
        return ClipExtractor(clip)

    def _clip(self) -> Clip:
        if not self.path:
            raise ValueError("clip_features needs path=, the folder of a trained text encoder")
        return Clip.load(place(self.path))


class ClipExtractor(Extractor):
    """A loaded picture tower."""

    classes = 0

    def __init__(self, clip: Clip):
        self.clip = clip
        self.name = f"clip {weights_hash(clip.network.heads)}"

    @torch.no_grad()
    def __call__(self, images: Tensor, batch: int = 512) -> Extracted:
        network, codec = self.clip.network, self.clip.codec
        found = [network.of_pictures(codec.encode(part)) for part in images.split(batch)]
        return Extracted(network.scale() * torch.cat(found))
