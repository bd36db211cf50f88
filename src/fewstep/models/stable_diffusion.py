"""Stable Diffusion 1.x and 2.x from files of others: a pipeline's folder of diffusers, or a single
safetensors file in the layout of the first release.

diffusers reads the weights (`stable_diffusion_files`); what is around them becomes ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fewstep.choice import Choice
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.parameterization import LcmBoundary, Parameterization, predicted
from fewstep.diffusion.process import End, VariancePreservingTable
from fewstep.diffusion.samplers import FlowMap, Ode, Renoise, Sampler
from fewstep.diffusion.solvers import Dpmpp2m, Euler
from fewstep.diffusion.times import Strided, Trailing
from fewstep.files import read_json, tensor_shapes
from fewstep.models import autoencoder_kl, clip_text, unet2d_condition
from fewstep.models.autoencoder_kl import AutoencoderKl
from fewstep.models.bundle import DiffusionModel
from fewstep.models.clip_text import ClipText, tokenizer_bytes
from fewstep.models.described import are_columns, errors_of, guidance_of
from fewstep.models.library import own_options, quiet
from fewstep.models.size import without_memory
from fewstep.models.space import Space
from fewstep.models.stable_diffusion_files import INDEX, read_file, read_folder
from fewstep.models.unet2d_condition import UNet2dCondition
from fewstep.text import in_one_line

EXPORT = "fewstep.json"  # beside it, of a model that fewstep has exported
PIPELINES = ("StableDiffusionPipeline", "LatentConsistencyModelPipeline")
FIRST = (
    "model.diffusion_model.input_blocks.0.0.weight",
    "first_stage_model.encoder.conv_in.weight",
)
"""Weights that a single file of this family has."""
FAST_NAMES = ("turbo", "lightning", "hyper-sd", "hypersd", "lcm", "tcd", "dmd", "distilled")
"""Words in names under which few-step models are published."""


def recognises(path: Path) -> bool:
    """Whether it is a pipeline of this family, or a single file of one; nothing is loaded."""
    if path.is_dir():
        return (path / INDEX).is_file() and _pipeline_class(path) in PIPELINES
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
    with _errors_of(path):
        pipeline = read_folder(path) if path.is_dir() else read_file(path)
        conditioner = _conditioner(pipeline.text_encoder, pipeline.tokenizer)
    schedule = _plain(pipeline.scheduler.config)
    codec = _around(
        AutoencoderKl(own_options(_plain(pipeline.vae.config), autoencoder_kl.CLASS)), pipeline.vae
    )
    unet = pipeline.unet.eval()
    spec = UNet2dCondition(own_options(_plain(unet.config), unet2d_condition.CLASS))
    size = unet.config["sample_size"]
    sides = [size, size] if isinstance(size, int) else size
    shape = (unet.config["in_channels"], *sides)
    network = _around(spec, unet, Space(shape, conditioner.columns))
    reads_guidance = "guidance" in network.inputs
    name = _class_name(schedule)
    denoiser = Denoiser(network, table(schedule), _prediction(name, schedule)).eval()
    card = {"family": "stable_diffusion", "scheduler": name}
    if reason := _few_step(path, name, reads_guidance):
        card["distilled"] = reason
    model = DiffusionModel(
        denoiser,
        codec,
        conditioner,
        shape,
        _sampler(name, schedule),
        _guidance(name, reads_guidance),
        card,
    )
    return _as_exported(model, path / EXPORT) if (path / EXPORT).is_file() else model


def noted(model: DiffusionModel) -> dict[str, Any]:
    """What an export says of a model that no file of diffusers can: `load` takes it from there."""
    return {
        "parameterization": model.denoiser.parameterization.dump(),
        "sampler": model.sampler.dump(),
        "guidance": model.guidance.told(),
        "examples": model.examples,
        "card": model.card,
    }


def _as_exported(model: DiffusionModel, file: Path) -> DiffusionModel:
    """The model as it was when it was exported, by what was noted then."""
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


def table(schedule: Mapping[str, Any]) -> VariancePreservingTable:
    """The noise levels of a scheduler's configuration. ValueError for those that are not known."""
    if "beta_schedule" not in schedule or schedule.get("trained_betas") is not None:
        raise ValueError(f"the noise levels of {_class_name(schedule)} are no table of betas")
    kind = schedule["beta_schedule"]
    if kind not in ("linear", "scaled_linear"):
        raise ValueError(f"no table of noise levels is known as {kind!r}: linear, scaled_linear")
    return VariancePreservingTable(
        size=schedule["num_train_timesteps"],
        beta_start=schedule["beta_start"],
        beta_end=schedule["beta_end"],
        schedule=kind,
        zero_snr=bool(schedule.get("rescale_betas_zero_snr")),
    )


def _prediction(scheduler: str, schedule: Mapping[str, Any]) -> Parameterization:
    of = predicted(schedule)
    return LcmBoundary(of) if scheduler == "LCMScheduler" else of


def _sampler(scheduler: str, schedule: Mapping[str, Any]) -> Sampler:
    """What the model is sampled with: a few-step model as its scheduler does it, DDIM where the
    folder says so, DPM-Solver++ for all others. All of them begin at the last index.
    """
    total = schedule.get("original_inference_steps") or 50
    if scheduler == "LCMScheduler":
        return Renoise(4, Strided(Trailing(), total))
    if scheduler == "TCDScheduler":  # which ends at index 0
        return FlowMap(4, Strided(Trailing("t_min"), total), gamma=0.3, shortens="time")
    if scheduler == "DDIMScheduler":
        end: End = "t_data" if schedule.get("set_alpha_to_one", True) else "t_min"
        return Ode(50, Trailing(end), Euler())
    return Ode(25, Trailing(), Dpmpp2m())


def _guidance(scheduler: str, reads_guidance: bool) -> Guidance:
    if reads_guidance:
        return Guidance("input", 3.0, 15.0, 8.5)  # w of 2 … 14 were trained, diffusers asks for 8.5
    if scheduler in ("LCMScheduler", "TCDScheduler"):
        return Guidance("doubled", 1.0, 2.0, 1.0)  # most of it was distilled
    return Guidance("doubled", 1.0, 15.0, 7.5)


def _few_step(path: Path, scheduler: str, reads_guidance: bool) -> str:
    """By what a model is seen to be a few-step one; '' for others."""
    reasons = []
    if scheduler in ("LCMScheduler", "TCDScheduler"):
        reasons.append(f"its scheduler is {scheduler}")
    if reads_guidance:
        reasons.append("its U-Net reads the guidance scale")
    if told := few_step_name(path.stem):
        reasons.append(f"its name says {told}")
    return ", ".join(reasons)


def few_step_name(name: str) -> str:
    """The word of a name by which it is one of a few-step model; '' for others."""
    return next((word for word in FAST_NAMES if word in name.lower()), "")


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Within the block what diffusers and transformers refuse is one line with the path; they say
    nothing else, and draw no bars.
    """
    try:
        with quiet():
            yield
    except ImportError:
        raise
    except Exception as error:  # of any kind: the libraries check files in many ways
        raise ValueError(f"{path} cannot be read: {in_one_line(error, 300)}") from error


def _conditioner(encoder: Any, tokenizer: Any) -> Any:
    """ValueError for another tokenizer than the text encoder's: where its files are missing
    transformers makes one that knows no word.
    """
    mine, theirs = encoder.config.vocab_size, len(tokenizer)
    if mine != theirs:
        raise ValueError(f"its tokenizer has {theirs} tokens, its text encoder {mine}")
    options = own_options(encoder.config.to_dict(), clip_text.CONFIG)
    content = tokenizer_bytes(tokenizer, options["max_position_embeddings"])
    made = _around(ClipText(options, tokenizer=len(content)), encoder)
    made.tokenizer_json = content
    return made


def _around(spec: Choice, module: nn.Module, *space: Space) -> Any:
    """The module of ours around one of theirs, which is there already."""
    with without_memory():
        made: Any = spec.build(*space)  # type: ignore[attr-defined]
    made.module = module.float().eval()
    return made


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as its file has it."""
    found: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
    return found


def _class_name(config: Mapping[str, Any]) -> str:
    return str(config.get("_class_name", "its scheduler"))


def _pipeline_class(folder: Path) -> str:
    try:
        index = read_json(folder / INDEX)
    except (OSError, ValueError):
        return ""
    return _class_name(index) if isinstance(index, dict) else ""
