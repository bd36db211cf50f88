"""Models of pixels from diffusers' folders: a UNet2DModel under any scheduler that is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.guidance import Guidance
from fewstep.errors import option_errors
from fewstep.files import read_json
from fewstep.models.bundle import DiffusionModel
from fewstep.models.codec import Pixels, UnitPixels
from fewstep.models.conditioner import Labels, Unconditional
from fewstep.models.exported import EXPORT, as_exported
from fewstep.models.library import own_options
from fewstep.models.network import Network
from fewstep.models.pipelines import (
    INDEX,
    card_of,
    pipeline_class,
    read_part,
    read_scheduler,
    reading,
)
from fewstep.models.schedulers import Scheduled, clip_of, plain, scheduled
from fewstep.models.space import Space
from fewstep.models.unet import UNet
from fewstep.models.unet2d import UNet2d
from fewstep.models.unet_names import load_unet

PIPELINES = (
    "DDPMPipeline",
    "DDIMPipeline",
    "PNDMPipeline",
    "ScoreSdeVePipeline",
    "KarrasVePipeline",
    "ConsistencyModelPipeline",
)


def recognises(path: Path) -> bool:
    """Whether it is a pipeline of pixels; nothing is loaded."""
    return path.is_dir() and pipeline_class(path) in PIPELINES


def load(path: Path) -> DiffusionModel:
    """The model of a folder, in float32. FileNotFoundError or ValueError, in one line, where
    something is missing or cannot be served; ImportError without diffusers.
    """
    with reading(path):
        kind = read_json(path / INDEX).get("unet")
        if kind != ["diffusers", "UNet2DModel"]:
            raise ValueError(f"its unet is {kind}, not a UNet2DModel of diffusers")
        unet = read_part(path, "unet", UNet2d.library)
        name, schedule = read_scheduler(path)
        told = scheduled(name, schedule)
        conditioner = _conditioner(unet).build()
        space = Space(_shape(unet), conditioner.columns)
        network = _own(path, unet, space) or _theirs(unet, space, told)
        denoiser = Denoiser(network, told.process, told.prediction).eval()
    codec = UnitPixels().build() if told.unit else Pixels().build()
    model = DiffusionModel(
        denoiser,
        codec,
        conditioner,
        tuple(space.shape),
        told.sampler,
        Guidance(),
        card_of(path, "unet_2d", name),
        clip=clip_of(schedule),
    )
    return as_exported(model, path / EXPORT)


def _shape(unet: Any) -> tuple[int, ...]:
    size = unet.config["sample_size"]
    if size is None:
        raise ValueError("its unet does not say of which size its images are: sample_size")
    sides = [size, size] if isinstance(size, int) else size
    return (unet.config["in_channels"], *sides)


def _conditioner(unet: Any) -> Labels | Unconditional:
    """Which of its classes means "any" no file says: none is taken for it."""
    classes = unet.config["num_class_embeds"]
    return Labels(classes, null=False) if classes else Unconditional()


def _own(path: Path, unet: Any, space: Space) -> nn.Module | None:
    """The network that the folder was exported from, with these weights; None where it was none of
    ours. Its arithmetic is then the same to the bit, which diffusers' is not.
    """
    file = path / EXPORT
    described = read_json(file) if file.is_file() else None
    if not isinstance(described, dict) or "network" not in described:
        return None
    try:
        spec = Network.parse(described["network"])
    except ValueError as error:
        raise ValueError(f"{file.name}: {'; '.join(option_errors(error)) or error}") from None
    if not isinstance(spec, UNet):
        return None
    network: Any = spec.build(space)
    load_unet(network, unet.float().state_dict())
    return network


def _theirs(unet: Any, space: Space, told: Scheduled) -> nn.Module:
    """The network of diffusers as it is."""
    config = own_options(plain(unet.config), UNet2d.library)
    spec = UNet2d(config=config, time_input=told.time_input)
    spec.fitted(space)
    network: Any = spec.around(unet.float().eval(), space)
    return network
