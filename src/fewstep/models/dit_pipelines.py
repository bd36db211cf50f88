"""Diffusion transformers from diffusers' folders: DiTPipeline, latents with a class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.guidance import Guidance
from fewstep.models.autoencoder_kl import CLASS, AutoencoderKl
from fewstep.models.bundle import DiffusionModel
from fewstep.models.conditioner import Labels
from fewstep.models.dit_transformer2d import DitTransformer2d
from fewstep.models.exported import EXPORT, as_exported
from fewstep.models.library import own_options
from fewstep.models.pipelines import (
    around,
    card_of,
    pipeline_class,
    read_part,
    read_scheduler,
    reading,
)
from fewstep.models.schedulers import clip_of, plain, scheduled
from fewstep.models.space import Space


def recognises(path: Path) -> bool:
    """Whether it is a pipeline of this family; nothing is loaded."""
    return path.is_dir() and pipeline_class(path) == "DiTPipeline"


def load(path: Path) -> DiffusionModel:
    """The model of a folder, in float32. FileNotFoundError or ValueError, in one line, where
    something is missing or cannot be served; ImportError without diffusers.
    """
    with reading(path):
        transformer = read_part(path, "transformer", DitTransformer2d.library)
        vae = read_part(path, "vae", CLASS)
        name, schedule = read_scheduler(path)
        told = scheduled(name, schedule)
        options = own_options(plain(transformer.config), DitTransformer2d.library)
        conditioner = Labels(options["num_embeds_ada_norm"], null=True).build()
        size = options["sample_size"]
        shape = (options["in_channels"], size, size)
        space = Space(shape, conditioner.columns)
        spec = DitTransformer2d(config=options, time_input=told.time_input)
        spec.fitted(space)
        network: Any = spec.around(transformer.float().eval(), space)
        codec = around(AutoencoderKl(own_options(plain(vae.config), CLASS)), vae)
        denoiser = Denoiser(network, told.process, told.prediction).eval()
    model = DiffusionModel(
        denoiser,
        codec,
        conditioner,
        shape,
        told.sampler,
        Guidance("doubled", 1.0, 15.0, 4.0),
        card_of(path, "dit", name),
        clip=clip_of(schedule),
    )
    return as_exported(model, path / EXPORT)
