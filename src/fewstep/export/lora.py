"""Export of a LoRA student: two files with the same weights under the names of two worlds, both
right at strength 1.

NAME.safetensors has kohya's names, which ComfyUI and A1111 read (diffusers too); an `alpha` beside
each pair says the scale. pytorch_lora_weights.safetensors has diffusers' names; alpha/rank is
multiplied into B, as its loader takes alpha for the rank where nothing says another.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.diffusion.parameterization import predicting
from fewstep.export.card import Card, write_card
from fewstep.export.rounding import rounded
from fewstep.export.schedules import Schedule, bare, guidance_of, schedule_of
from fewstep.export.stable_diffusion import (
    an_image,
    call_of,
    compared,
    parts_of,
    pipeline_of,
)
from fewstep.files import new_folder, save_tensors, write_json
from fewstep.models.adapters import Addition
from fewstep.models.bundle import DiffusionModel
from fewstep.models.exported import EXPORT
from fewstep.models.hub import is_name
from fewstep.models.library import quiet
from fewstep.models.lora_files import delta

DIFFUSERS = "pytorch_lora_weights.safetensors"
VERSIONS = {768: "sd_v1", 1024: "sd_v2"}
"""Stable Diffusion's versions by the width of their text encoders."""
ARCHITECTURES = {
    "sd_v1": "v1",
    "sd_v1_v": "v1",
    "sd_v2": "v2-512",
    "sd_v2_v": "v2-768-v",
}
"""What model specifications call what kohya's tools call so."""
NEAR = 15
"""Indices by which a time may differ from that of sgm_uniform without a word."""


def export_lora(
    model: DiffusionModel,
    addition: Addition,
    folder: Path,
    name: str,
    card: Card,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Writes both files and a card, loads each into the stock pipeline of the base and returns the
    largest difference of its images from the model's own. dtype: of the files.

    Raises ValueError where more than the addition was trained, or the images differ by more than
    1e-4; then nothing is left under the folder's name.
    """
    if not addition.facts["whole"]:
        inputs = ", ".join(addition.facts["inputs"])
        raise ValueError(
            f"the student also reads {inputs}, which no LoRA file can add to a base: export --to "
            "diffusers writes the whole pipeline"
        )
    network, *_ = parts_of(model)
    schedule = schedule_of(model.denoiser, model.sampler)
    scale = addition.facts["alpha"] / addition.facts["rank"]
    pairs = _pairs(addition.tensors)
    width = network.module.config["cross_attention_dim"]
    labels = labels_of(model, addition, schedule, name, VERSIONS.get(width, "sd_v1"))
    files = {
        f"{name}.safetensors": kohya(pairs, addition.facts["alpha"]),
        DIFFUSERS: diffusers_names(pairs, scale),
    }
    with new_folder(folder) as beside:
        for file, tensors in files.items():
            save_tensors(beside / file, {key: one.to(dtype) for key, one in tensors.items()})
            labelled(beside / file, labels)
        write_json(beside / EXPORT, {"call": call_of(model, schedule), "card": model.card})
        told = {
            "scheduler": schedule.name,
            **call_of(model, schedule),
            "rank": addition.facts["rank"],
            "ComfyUI, A1111": labels["fewstep.usage"],
        }
        if merged := _merged(model):
            told["base"] = f"{card.base or 'the base'} with {merged}"
        snippet, few = _snippet(model, schedule, card, name), bool(model.distilled)
        write_card(beside, card, model.card, told, snippet, few, lora=True)
        with quiet():
            base = _base(model, pairs, scale)
        found = [_difference(model, base, schedule, beside / file) for file in files]
    return max(found)


@torch.no_grad()
def round_addition(model: DiffusionModel, addition: Addition, dtype: torch.dtype) -> Addition:
    """Rounds what a LoRA adds, in the addition that is returned and, in place, in the model into
    which it is merged; the base keeps its digits.
    """
    tensors = {name: rounded(tensor, dtype) for name, tensor in addition.tensors.items()}
    made = Addition(tensors, addition.facts)
    scale = addition.facts["alpha"] / addition.facts["rank"]
    before, after = _pairs(addition.tensors), _pairs(tensors)
    weights = dict(model.denoiser.network.module.named_parameters())  # type: ignore[union-attr]
    for path in after:
        change = delta(*after[path]) - delta(*before[path])
        weights[f"{path}.weight"] += scale * change
    return made


def _pairs(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B by the path of their layer, as diffusers calls it."""
    found = {}
    for key, a in tensors.items():
        if key.endswith(".lora_A.weight"):
            path = key.removesuffix(".lora_A.weight")
            found[path.removeprefix("module.")] = (a, tensors[f"{path}.lora_B.weight"])
    return found


def kohya(pairs: Mapping[str, tuple[Tensor, Tensor]], alpha: float) -> dict[str, Tensor]:
    """Under kohya's names, the unscaled weights and alpha."""
    named = {}
    for path, (a, b) in pairs.items():
        key = f"lora_unet_{path.replace('.', '_')}"
        named[f"{key}.lora_down.weight"] = a
        named[f"{key}.lora_up.weight"] = b
        named[f"{key}.alpha"] = torch.tensor(float(alpha))
    return named


def diffusers_names(pairs: Mapping[str, tuple[Tensor, Tensor]], scale: float) -> dict[str, Tensor]:
    """Under diffusers' names, alpha/rank multiplied into B."""
    named = {}
    for path, (a, b) in pairs.items():
        named[f"unet.{path}.lora_A.weight"] = a
        named[f"unet.{path}.lora_B.weight"] = b * scale
    return named


def _base(model: DiffusionModel, pairs: Mapping[str, tuple[Tensor, Tensor]], scale: float) -> Any:
    """The stock pipeline of the base: the student's, what was added taken off again."""
    pipeline = pipeline_of(model, schedule_of(model.denoiser, model.sampler), bare=False)
    weights = dict(pipeline.unet.named_parameters())
    with torch.no_grad():
        for path, (a, b) in pairs.items():
            weights[f"{path}.weight"] -= scale * delta(a, b)
    return pipeline


def _difference(model: DiffusionModel, base: Any, schedule: Schedule, file: Path) -> float:
    with quiet():
        base.load_lora_weights(file.parent, weight_name=file.name)
    try:
        return compared(model, base, schedule)
    finally:
        base.unload_lora_weights()


def labelled(path: Path, labels: Mapping[str, str]) -> None:
    """Writes metadata into the header of a safetensors file that has none, in this order: the
    library writes them in any.
    """
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.dumps({"__metadata__": dict(labels), **json.loads(content[8 : 8 + size])})
    head = header.encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(len(head).to_bytes(8, "little") + head + content[8 + size :])


def labels_of(
    model: DiffusionModel, addition: Addition, schedule: Schedule, name: str, version: str
) -> dict[str, str]:
    """What tools show of the file, and how it is used."""
    facts, steps = addition.facts, model.sampler.steps
    scale = guidance_of(model)
    usage = f"strength 1, CFG {scale:g}, {steps} steps, {elsewhere(schedule)}"
    if merged := _merged(model):
        usage += f", beside {merged}"
    [(what, predicted)] = predicting(bare(model.denoiser.parameterization)).items()
    if predicted.startswith("v"):
        version += "_v"
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"stable-diffusion-{ARCHITECTURES[version]}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.resolution": "x".join(map(str, reversed(model.image_shape[1:]))),
        f"modelspec.{what}": predicted.partition("_")[0],  # v, not v_prediction
        "modelspec.usage_hint": usage,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(facts["rank"]),
        "ss_network_alpha": f"{float(facts['alpha']):g}",
        "ss_base_model_version": version,
        "fewstep.steps": str(steps),
        "fewstep.times": ",".join(map(str, schedule.times)),
        "fewstep.guidance": f"{scale:g}",
        "fewstep.scheduler": schedule.name,
        "fewstep.base": str(facts["base"]),
        "fewstep.usage": usage,
    }


def elsewhere(schedule: Schedule) -> str:
    """What ComfyUI and A1111 call such a sampler. Both call DDIM's steps along chosen times euler;
    what A1111 calls DDIM has other times.
    """
    times = schedule.times
    if schedule.name == "TCDScheduler":
        sampler = "tcd"
    elif schedule.name == "LCMScheduler":
        sampler = "lcm"
    else:
        sampler = "dpmpp_2m" if schedule.config.get("solver_order") == 2 else "euler"
    even = [times[0] * (1 - i / len(times)) for i in range(len(times))]
    told = f"sampler {sampler}, scheduler sgm_uniform"
    if max(abs(t - other) for t, other in zip(times, even, strict=True)) > NEAR:
        told += f" (its own times are {', '.join(map(str, times))})"
    return told


def _merged(model: DiffusionModel) -> str:
    """The LoRAs of others that are in the base, with their strengths; "" for none."""
    return ", ".join(f"{name} at {strength:g}" for name, strength in model.card.get("lora", ()))


def _snippet(model: DiffusionModel, schedule: Schedule, card: Card, name: str) -> str:
    """Python that makes an image, in the folder of the files."""
    base = card.base or "the pipeline of the base"
    known = is_name(base) or os.sep in base
    note = "" if known else "  # what was distilled: its folder, or its name on the hub"
    beside = []
    for file, strength in model.card.get("lora", ()):
        beside += [
            f"pipe.load_lora_weights({json.dumps(file)})",
            f"pipe.fuse_lora(lora_scale={strength!r})",
            "pipe.unload_lora_weights()",
        ]
    config = ", ".join(f"{key}={value!r}" for key, value in schedule.config.items())
    return "\n".join(
        [
            "import torch",
            f"from diffusers import {schedule.name}, StableDiffusionPipeline",
            "",
            f"base = {json.dumps(base)}{note}",
            "pipe = StableDiffusionPipeline.from_pretrained(base).to(torch.float32)",
            *beside,
            f'pipe.load_lora_weights(".", weight_name={json.dumps(f"{name}.safetensors")})',
            f"pipe.scheduler = {schedule.name}({config})",
            *an_image(model, schedule),
        ]
    )
