"""Stable Diffusions read by diffusers, from safetensors alone: a pipeline's folder, or a single
file.

A single file says neither configuration nor tokens: both come from a pipeline's folder that lies
beside it. Both libraries make new weights of what a file lacks; here that is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewstep.files import read_json, tensor_shapes
from fewstep.models.library import library_class
from fewstep.models.pipelines import INDEX, check_none, read_part

PARTS = {
    "unet": "diffusers.UNet2DConditionModel",
    "vae": "diffusers.AutoencoderKL",
    "text_encoder": "transformers.CLIPTextModel",
}
"""The networks of a folder, and their classes."""
TEXT = "cond_stage_model."
OPEN_CLIP = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "self_attn": "attn",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "fc1": "c_fc",
    "fc2": "c_proj",
    "q_proj.": "in_proj_",
    "k_proj.": "in_proj_",
    "v_proj.": "in_proj_",
}
"""What OpenCLIP calls the weights of the text encoder, as single files of 2.x have them."""


def read_folder(path: Path) -> Any:
    """The pipeline of a folder. ValueError where the file of a network has not exactly its weights;
    what the libraries raise for all else.
    """
    index = read_json(path / INDEX)
    for name in ("tokenizer", "scheduler", *PARTS):
        if not (path / name).is_dir():
            raise FileNotFoundError(f"it has no {name}")
    parts = {}
    for name, class_of_part in PARTS.items():
        if index.get(name) == class_of_part.split("."):
            parts[name] = read_part(path, name, class_of_part)
    return library_class("diffusers.DiffusionPipeline").from_pretrained(
        str(path), use_safetensors=True, **parts, **_how()
    )


def read_file(path: Path) -> Any:
    """The pipeline of a single file. ValueError where it lacks weights of a network."""
    beside = [
        folder for folder in (path.with_suffix(""), path.parent) if (folder / INDEX).is_file()
    ]
    if not beside:
        raise ValueError(
            f"a single file does not say its tokens: lay a pipeline's folder of the same base, "
            f"with {INDEX} and tokenizer, beside it as {path.with_suffix('')}"
        )
    try:
        pipeline = library_class("diffusers.StableDiffusionPipeline").from_single_file(
            str(path), config=str(beside[0]), **_how()
        )
    except NotImplementedError as error:
        if "meta tensor" not in str(error):  # such have no memory: they were not in the file
            raise
        raise ValueError("it lacks weights of its unet or vae") from error
    there = {_bare(key) for key in tensor_shapes(path) if key.startswith(TEXT)}
    first = any(key.startswith(f"{TEXT}transformer.") for key in tensor_shapes(path))
    lost = []
    for key in pipeline.text_encoder.state_dict():
        if (_bare(key) if first else _open_clip(_bare(key))) not in there:
            lost.append(key)
    check_none(lost, "its text_encoder lacks the weights")
    return pipeline


def _bare(key: str) -> str:
    """The name of a weight of the text encoder within it."""
    for prefix in (TEXT, "transformer.text_model.", "transformer.", "model.", "text_model."):
        if not key.startswith("transformer.resblocks."):
            key = key.removeprefix(prefix)
    return key


def _open_clip(key: str) -> str:
    for ours, theirs in OPEN_CLIP.items():
        key = key.replace(ours, theirs)
    return key


def _how() -> dict[str, Any]:
    """What is read: no checks of pictures, no code of others, nothing from elsewhere."""
    return {
        "local_files_only": True,
        "safety_checker": None,
        "feature_extractor": None,
        "image_encoder": None,
        "requires_safety_checker": False,
    }
