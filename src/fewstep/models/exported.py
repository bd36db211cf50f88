"""What an export notes beside the files of others, and how a model is what it was again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.parameterization import Parameterization
from fewstep.diffusion.samplers import Sampler
from fewstep.files import read_json
from fewstep.models.bundle import DiffusionModel
from fewstep.models.described import are_columns, errors_of, guidance_of

EXPORT = "fewstep.json"  # beside it, of a model that fewstep has exported


def noted(model: DiffusionModel) -> dict[str, Any]:
    """What an export says of a model that no file of diffusers can: `load` takes it from there."""
    return {
        "parameterization": model.denoiser.parameterization.dump(),
        "sampler": model.sampler.dump(),
        "guidance": model.guidance.told(),
        "examples": model.examples,
        "card": model.card,
    }


def as_exported(model: DiffusionModel, file: Path) -> DiffusionModel:
    """The model as it was when it was exported, by what was noted then; itself without a file."""
    if not file.is_file():
        return model
    described = read_json(file)
    if not isinstance(described, dict) or "model" not in described:
        return model
    with errors_of(file):
        told = described["model"]
        boundary = Parameterization.parse(told["parameterization"])
        sampler, guidance = Sampler.parse(told["sampler"]), guidance_of(told["guidance"])
        examples, card = told["examples"], told["card"]
        if not isinstance(card, dict) or not are_columns(examples):
            raise TypeError("card, examples")
    before = model.denoiser
    denoiser = Denoiser(before.network, before.process, boundary, before.own).eval()
    return replace(
        model,
        denoiser=denoiser,
        sampler=sampler,
        guidance=guidance,
        examples=examples,
        card=card,
    )
