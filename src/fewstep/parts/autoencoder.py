"""How the autoencoder of a latent model is trained (arXiv:2112.10752, without a discriminator)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.choice import Count, NonNegative
from fewstep.data.dataset import Dataset, Rows
from fewstep.diffusion.draws import Draws
from fewstep.files import new_folder, read_json, save_tensors, sha256, write_json
from fewstep.finite import check_saved
from fewstep.learning.batch import Batch
from fewstep.learning.losses import Absolute, Distance
from fewstep.learning.method import Clock, Clone, Data, Losses, Method
from fewstep.learning.roles import trained
from fewstep.models.autoencoder_kl import AutoencoderKl, AutoencoderKlModule
from fewstep.models.codec import CodecModule, Pixels
from fewstep.models.conditioner import ConditionerModule, Unconditional
from fewstep.models.described import errors_of
from fewstep.models.folder import CODEC, FORMAT, load_codec, read_description, shape_of
from fewstep.models.named import folder_of
from fewstep.models.part import Part
from fewstep.models.source import ModelSource
from fewstep.models.space import Image, Space, described

PART = 256  # images that are encoded at a time


@dataclass(eq=False)
class Autoencoder(Part):
    """An autoencoder in training, on images in [-1, 1]. Its folder holds what that of a diffusion
    model holds of its codec, so that `load_codec` reads both.
    """

    network: AutoencoderKlModule
    shape: tuple[int, ...]
    card: dict[str, Any] = field(default_factory=dict)
    codec: CodecModule = field(default_factory=lambda: Pixels().build())

    @property
    def conditioner(self) -> ConditionerModule:
        """Nothing."""
        return Unconditional().build()

    def save(self, folder: Path) -> None:
        check_saved(self.network.state_dict(), dict(self.network.named_buffers()))
        with new_folder(Path(folder)) as beside:
            save_tensors(beside / CODEC, self.network.state_dict())
            facts = {
                "format": FORMAT,
                "codec": self.network.spec.dump(),
                "images": list(self.shape),
                "weights": {CODEC: sha256(beside / CODEC)},
                "card": self.card,
            }
            write_json(beside / "model.json", facts)

    @torch.no_grad()
    def reconstructed(self, dataset: Dataset, num: int, device: torch.device | str = "cpu") -> Rows:
        """The first `num` rows, their images encoded (to the middle, nothing is drawn) and decoded.
        ValueError for images of another shape.
        """
        if tuple(dataset.shape) != tuple(self.shape):
            raise ValueError(f"it encodes images of shape {self.shape}, these have {dataset.shape}")
        rows = dataset.rows(torch.arange(min(num, len(dataset))))
        parts = (rows["image"].float() / 255).split(PART)
        codec = self.network.to(device)
        images = [codec.decode(codec.encode(part.to(device))).cpu() for part in parts]
        return {**rows, "image": torch.cat(images)}

    @classmethod
    def at(cls, folder: Path) -> bool:
        """Whether that is the folder of such a model or its run."""
        path = folder / "model.json"
        if not path.is_file():
            path = folder / "student" / "model.json"
        facts = read_json(path) if path.is_file() else {}
        return isinstance(facts, dict) and {"codec", "images"} <= set(facts)

    @classmethod
    def load(cls, folder: Path) -> Autoencoder:
        path = folder_of(folder) / "model.json"
        facts = read_description(path, "images", f"{folder} holds no trained autoencoder")
        with errors_of(path):
            shape = shape_of({"shape": facts["images"]})
        network = load_codec(folder)
        assert isinstance(network, AutoencoderKlModule)
        return cls(network, shape, facts["card"])


@dataclass(frozen=True)
class FreshAutoencoder(ModelSource):
    """A new autoencoder, initialised under the run's seed."""

    codec: AutoencoderKl = field(default_factory=AutoencoderKl)
    """The autoencoder; its scaling_factor is measured when it is trained."""

    def load(self, data: Space, seed: int) -> Autoencoder:
        if not isinstance(data.columns.get("image"), Image):
            raise ValueError(f"an autoencoder needs images, the data has {described(data.columns)}")
        self.codec.shape(data.shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.codec.build()
        return Autoencoder(network, tuple(data.shape))


@dataclass(frozen=True)
class Autoencoding(Method):
    """Reconstruction, and a small divergence of the latents from unit normal noise.

    With d numbers in an image the loss is mean distance + kl/d · divergence, the ratio of the
    published loss, in which both are sums. Latents are drawn, as in the training of diffusion
    models. At the end scaling_factor becomes 1 / std of the drawn latents, over all their elements,
    of the first `measured` training images, under the averaged weights that are saved.
    """

    distance: Distance = field(default_factory=Absolute)
    """Between an image and its reconstruction, both in [-1, 1]."""
    perceptual: Distance | None = None
    """Another distance that is added: features (of a saved classifier), lpips."""
    perceptual_weight: NonNegative = 1.0
    """Its weight."""
    kl: NonNegative = 1e-6
    """Weight of the divergence from unit normal noise, beside a distance that is a sum over all
    numbers of an image."""
    measured: Count = 4096
    """How many images the scaling factor is measured on."""
    trains: ClassVar[type] = Autoencoder

    @dataclass
    class Nets:
        """The autoencoder."""

        student: AutoencoderKlModule = trained(exported=True)

    def build_nets(self, model: Autoencoder, clone: Clone) -> Nets:
        return self.Nets(model.network)

    def loss(self, nets: Nets, batch: Batch, clock: Clock) -> Losses:
        """One draw of the latent per image."""
        codec, x = nets.student, batch.data
        moments = codec.moments(x / 2 + 0.5)
        again = codec.unclamped(codec.latents(moments, batch.draws.fork("latents")))
        divergence = divergence_from_noise(moments)
        terms = {
            "reconstruction": self.distance(again, x),
            "divergence": self.kl / x[0].numel() * divergence,
        }
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual_weight * self.perceptual(again, x)
        return Losses(terms, {"nats": divergence})

    def completed(self, made: Autoencoder, data: Data) -> Autoencoder:
        """With the scaling factor that gives latents of standard deviation 1."""
        made.network.rescale(1.0)
        latents = self.latents(made, data)
        check_saved({"a latent": latents})
        made.network.rescale(1 / latents.std().item())
        return made

    @torch.no_grad()
    def latents(self, made: Autoencoder, data: Data) -> Tensor:
        """Drawn latents of the first `measured` images of the training, in model space."""
        found = []
        device = next(made.network.parameters()).device
        for first in range(0, self.measured, PART):
            rows = range(first, min(first + PART, self.measured))
            draws = Draws(0, rows, stream="scale", device=device)
            images = data(0, rows, draws).data / 2 + 0.5
            found.append(made.network.encode(images, draws))
        return torch.cat(found)


def divergence_from_noise(moments: Tensor) -> Tensor:
    """KL(N(mean, variance) | N(0, 1)) in nats, summed over a sample's elements: (batch,)."""
    mean, log_variance = moments.flatten(1).chunk(2, dim=1)
    log_variance = log_variance.clamp(-30, 20)
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
