"""Stable Diffusion 1.x and 2.x from files of others: a pipeline's folder of diffusers, or a single
safetensors file in the layout of the first release.

diffusers reads the weights (`stable_diffusion_files`); what is around them becomes ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.guidance import Guidance
from fewstep.files import tensor_shapes
from fewstep.models import autoencoder_kl, clip_text, unet2d_condition
from fewstep.models.autoencoder_kl import AutoencoderKl
from fewstep.models.bundle import DiffusionModel
from fewstep.models.clip_text import ClipText, tokenizer_bytes
from fewstep.models.exported import EXPORT, as_exported
from fewstep.models.library import own_options
from fewstep.models.pipelines import INDEX, around, card_of, pipeline_class, reading
from fewstep.models.schedulers import FEW_STEP, class_name, plain, prediction_of, sampler_of, table
from fewstep.models.space import Space
from fewstep.models.stable_diffusion_files import read_file, read_folder
from fewstep.models.unet2d_condition import UNet2dCondition

PIPELINES = ("StableDiffusionPipeline", "LatentConsistencyModelPipeline")
FIRST = (
    "model.diffusion_model.input_blocks.0.0.weight",
    "first_stage_model.encoder.conv_in.weight",
)
"""Weights that a single file of this family has."""


def recognises(path: Path) -> bool:
    """Whether it is a pipeline of this family, or a single file of one; nothing is loaded."""
    if path.is_dir():
        return (path / INDEX).is_file() and pipeline_class(path) in PIPELINES
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        names = tensor_shapes(path)
    except ValueError:
        return False
    return all(name in names for name in FIRST) and any(
        name.startswith("cond_stage_model.") for name in names
    )


def load(path: Path) -> DiffusionModel:
    """The model of a folder or a file, in float32. FileNotFoundError or ValueError, in one line,
    where something is missing or cannot be served; ImportError without diffusers.
    """
    with reading(path):
        pipeline = read_folder(path) if path.is_dir() else read_file(path)
        conditioner = _conditioner(pipeline.text_encoder, pipeline.tokenizer)
    schedule = plain(pipeline.scheduler.config)
    codec = around(
        AutoencoderKl(own_options(plain(pipeline.vae.config), autoencoder_kl.CLASS)), pipeline.vae
    )
    unet = pipeline.unet.eval()
    spec = UNet2dCondition(own_options(plain(unet.config), unet2d_condition.CLASS))
    size = unet.config["sample_size"]
    sides = [size, size] if isinstance(size, int) else size
    shape = (unet.config["in_channels"], *sides)
    network = around(spec, unet, Space(shape, conditioner.columns))
    reads_guidance = "guidance" in network.inputs
    name = class_name(schedule)
    denoiser = Denoiser(network, table(schedule), prediction_of(name, schedule)).eval()
    reasons = ["its U-Net reads the guidance scale"] if reads_guidance else []
    card = card_of(path, "stable_diffusion", name, reasons)
    model = DiffusionModel(
        denoiser,
        codec,
        conditioner,
        shape,
        sampler_of(name, schedule),
        _guidance(name, reads_guidance),
        card,
    )
    return as_exported(model, path / EXPORT)


def _guidance(scheduler: str, reads_guidance: bool) -> Guidance:
    if reads_guidance:
        return Guidance("input", 3.0, 15.0, 8.5)  # w of 2 … 14 were trained, diffusers asks for 8.5
    if scheduler in FEW_STEP:
        return Guidance("doubled", 1.0, 2.0, 1.0)  # most of it was distilled
    return Guidance("doubled", 1.0, 15.0, 7.5)


def _conditioner(encoder: Any, tokenizer: Any) -> Any:
    """ValueError for another tokenizer than the text encoder's: where its files are missing
    transformers makes one that knows no word.
    """
    mine, theirs = encoder.config.vocab_size, len(tokenizer)
    if mine != theirs:
        raise ValueError(f"its tokenizer has {theirs} tokens, its text encoder {mine}")
    options = own_options(encoder.config.to_dict(), clip_text.CONFIG)
    content = tokenizer_bytes(tokenizer, options["max_position_embeddings"])
    made = around(ClipText(options, tokenizer=len(content)), encoder)
    made.tokenizer_json = content
    return made
