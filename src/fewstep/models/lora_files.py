"""LoRA files of others, merged into a Stable Diffusion: the base with somebody's own style or
subject is the teacher then.

Read are kohya's names (lora_unet_…, lora_te_…), those of diffusers (unet.…, text_encoder.…, also
of its older attention processors) and of PEFT (base_model.model.…). W becomes
W + strength · alpha/rank · up down; of a convolution `down` has the kernel, and `up` is 1×1. What a
file holds is merged whole or refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.files import load_tensors, read_json
from fewstep.models.bundle import DiffusionModel
from fewstep.models.pipelines import few_step_name
from fewstep.models.unet2d_condition import UNet2dConditionModule
from fewstep.text import in_one_line, place

PREFIXES = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "base_model.model.": "unet",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
}
ENDS = {".alpha": "alpha"}
for stem, down, up in (
    (".lora_", "down", "up"),
    (".lora_", "A", "B"),
    (".lora.", "down", "up"),
    ("_lora.", "down", "up"),
    (".lora_linear_layer.", "down", "up"),
):
    ENDS |= {f"{stem}{down}.weight": "down", f"{stem}{up}.weight": "up"}
METADATA = "lora_adapter_metadata"  # of diffusers: the options of PEFT, as JSON
Layers = Mapping[str, Mapping[str, nn.Module]]  # by the part of the pipeline, by their paths


def merge(model: DiffusionModel, files: Sequence[str], strengths: Sequence[float]) -> None:
    """Adds the LoRAs of these files to the weights of a model, and notes them in its card.

    FileNotFoundError, or ValueError in one line for a model that has no such layers, a file of
    another base, and what is no LoRA.
    """
    if not files:
        return
    network = model.denoiser.network
    if not isinstance(network, UNet2dConditionModule):
        raise ValueError("lora: files are merged into a Stable Diffusion alone")
    layers = {"unet": _layers(network.module)}
    layers["text_encoder"] = _layers(model.conditioner)
    noted = []
    for file, strength in zip(files, strengths, strict=True):
        path = place(file)
        for layer, change in _changes(path, layers):
            weight: Any = layer.weight
            layer.weight = nn.Parameter(
                weight + strength * change, requires_grad=weight.requires_grad
            )
        noted.append(f"{path.name} at {strength:g}")
        if steps := _metadata(path).get("fewstep.steps"):
            model.card = {
                **model.card,
                "distilled": f"its LoRA says {in_one_line(steps, 20)} steps",
            }
        elif told := few_step_name(path.stem):
            model.card = {**model.card, "distilled": f"its LoRA's name says {told}"}
    model.card = {**model.card, "lora": ", ".join(noted)}


def _layers(module: nn.Module) -> dict[str, nn.Module]:
    """The layers that a LoRA can change, by their paths and as kohya writes these."""
    found: dict[str, nn.Module] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            name = name.removeprefix("module.").removeprefix("text_model.")
            found[name] = found[name.replace(".", "_")] = layer
    return found


@torch.no_grad()
def _changes(path: Path, layers: Layers) -> Iterator[tuple[nn.Module, Tensor]]:
    """Each layer that a file changes, with alpha/rank · up down in float32."""
    tensors, told = load_tensors(path), _told(path)
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        role, name, part = _split(key, path)
        parts.setdefault((role, name), {})[part] = tensor
    for (role, name), found in parts.items():
        layer = _layer(layers[role], name)
        if layer is None:
            raise ValueError(f"{path} is a LoRA of another base: this one has no {role} {name}")
        if "down" not in found or "up" not in found:
            raise ValueError(f"{path} is not whole: of {role} {name} it has {', '.join(found)}")
        down, up = found["down"].float(), found["up"].float()
        shape = layer.weight.shape
        if (up.shape[0], down.shape[0]) != (shape[0], up.shape[1]) or down[0].numel() != math.prod(
            shape[1:]
        ):
            raise ValueError(
                f"{path} is a LoRA of another base: {role} {name} is {tuple(shape)} here"
            )
        scale = _scale(found.get("alpha"), told.get(role, {}), name, down.shape[0])
        change = scale * delta(down, up).reshape(shape)
        if not change.isfinite().all():
            raise ValueError(f"{path} is damaged: {role} {name} has numbers that are not finite")
        yield layer, change


def delta(down: Tensor, up: Tensor) -> Tensor:
    """up down: what is added to the weight of a layer. Of a convolution `down` (rank, in, k, k)
    comes first, then `up` (out, rank, 1, 1).
    """
    return (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])


def _split(key: str, path: Path) -> tuple[str, str, str]:
    """(part of the pipeline, layer, down | up | alpha) of a key. ValueError for others: LoHa, DoRA
    and their kind are no products of two factors.
    """
    plain = key.replace(".default.weight", ".weight")
    for end, part in ENDS.items():
        if not plain.endswith(end):
            continue
        name, role = plain.removesuffix(end), "unet"
        for prefix, one in PREFIXES.items():
            if name.startswith(prefix):
                name, role = name.removeprefix(prefix), one
                break
        name = name.replace(".processor.", ".").removeprefix("unet.")
        name = name.removeprefix("text_model.").removeprefix("text_model_")
        return role, name, part
    raise ValueError(f"{path} is no LoRA that is known: it has {in_one_line(key, 100)}")


def _layer(layers: Mapping[str, nn.Module], name: str) -> Any:
    """The layer of that path; the output of older attention processors is one deeper."""
    return layers.get(name) or layers.get(f"{name}.0")


def _scale(alpha: Tensor | None, told: Mapping[str, Any], name: str, rank: int) -> float:
    """alpha/rank, as the file has it beside the factors, or PEFT's options say it; else 1."""
    if alpha is not None:
        return alpha.item() / rank
    value = told.get("lora_alpha") or rank
    for pattern, other in (told.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
            value = other
    return float(value) / (math.sqrt(rank) if told.get("use_rslora") else rank)


def _told(path: Path) -> dict[str, dict[str, Any]]:
    """PEFT's options of each part of the pipeline: noted in the file, or beside an adapter of
    PEFT's own.
    """
    noted = json.loads(_metadata(path).get(METADATA, "{}"))
    beside = path.with_name("adapter_config.json")
    if not noted and path.name == "adapter_model.safetensors" and beside.is_file():
        noted = {f"unet.{key}": value for key, value in read_json(beside).items()}
    found: dict[str, dict[str, Any]] = {}
    for key, value in noted.items():
        role, _, option = key.partition(".")
        found.setdefault(role, {})[option] = value
    return found


def _metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says beside its tensors."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})
