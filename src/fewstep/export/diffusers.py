"""Export to diffusers of models of pixels, and of latents with a class: a folder that needs no
fewstep.

Consistency models on variance exploding become a `ConsistencyModelPipeline`, which fixes the
published boundary (CmBoundary), images in [-1, 1] and square ones. Its bare call with n steps walks
a Karras grid; with num_train_timesteps = 4001 that is the student's own grid exactly wherever n
divides 4000. Models on a table of noise levels become a `DDPMPipeline`, which takes any scheduler
and no class, or a `DiTPipeline`. What they cannot say is refused.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.choice import kind_of
from fewstep.diffusion.parameterization import CmBoundary
from fewstep.diffusion.process import VarianceExploding
from fewstep.diffusion.samplers import Renoise
from fewstep.diffusion.times import Auto, Karras
from fewstep.export.card import Card, write_card
from fewstep.export.drawn import Drawn
from fewstep.export.rounding import store
from fewstep.export.schedules import check_told_by_steps, guidance_of, schedule_of
from fewstep.files import new_folder, take_mode, write_json
from fewstep.finite import check_images
from fewstep.models.autoencoder_kl import AutoencoderKlModule
from fewstep.models.bundle import DiffusionModel
from fewstep.models.codec import Pixels
from fewstep.models.diffusers_network import DiffusersModule
from fewstep.models.dit_transformer2d import DitTransformer2d
from fewstep.models.exported import EXPORT, noted
from fewstep.models.library import library_class, quiet
from fewstep.models.request import Request
from fewstep.models.unet import UNetModule
from fewstep.models.unet2d import UNet2d
from fewstep.models.unet_names import unet_config, unet_weights

GRID = 4001
TOLERANCE = 1e-4
NUM = 4
"""Images that are compared."""


@dataclass(frozen=True)
class Target:
    """A pipeline, and with which numbers of steps it samples as the model does: the first is the
    model's own.
    """

    pipeline: Any
    steps: tuple[int, ...]

    @property
    def name(self) -> str:
        """Its class in diffusers."""
        return type(self.pipeline).__name__

    def call(self, model: DiffusionModel, num: int) -> dict[str, Any]:
        """What it is called with for so many images of the model, beside the steps."""
        labels: Any = model.asked_of(0, num).get("label")
        if self.name == "DiTPipeline":
            return {"class_labels": labels.tolist(), "guidance_scale": guidance_of(model)}
        found: dict[str, Any] = {"batch_size": num}
        if labels is not None:
            found["class_labels"] = labels.tolist()
        return found


def export_diffusers(
    model: DiffusionModel, folder: Path, card: Card, dtype: torch.dtype = torch.float32
) -> float:
    """Writes the pipeline's folder and returns the largest difference of its images from the
    model's own. dtype: of the weights' file.

    Raises ValueError where the target cannot say what the model is, or where the images differ by
    more than 1e-4; then nothing is left under the folder's name. ImportError without diffusers.
    """
    target = _consistency(model) if _explodes(model) else _scheduled(model)
    for part in _networks(target.pipeline):
        store(part, dtype)
    with new_folder(folder) as beside:
        with quiet():
            target.pipeline.save_pretrained(beside)
        facts = {"steps": target.steps[0], "model": noted(model)}
        if isinstance(network := model.denoiser.network, UNetModule):
            facts["network"] = network.spec.dump()
        write_json(beside / EXPORT, facts)
        told = {"scheduler": type(target.pipeline.scheduler).__name__, "steps": target.steps[0]}
        few = bool(model.distilled)
        tag = "unconditional-image-generation"
        write_card(beside, card, model.card, told, _snippet(model, target), few, tag=tag)
        for file in (*beside.rglob("*.safetensors"), beside / "README.md"):
            take_mode(file, beside / EXPORT)
        with quiet():
            again = type(target.pipeline).from_pretrained(beside, low_cpu_mem_usage=False)
        for part in _networks(again):
            part.float()
        again.set_progress_bar_config(disable=True)
        read = Target(again, target.steps)
        difference = max(_difference(model, read, steps) for steps in target.steps)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"the exported pipeline's images differ from the model's by {difference:.2g}: not "
                f"exported"
            )
    return difference


def _networks(pipeline: Any) -> list[nn.Module]:
    return [part for part in pipeline.components.values() if isinstance(part, nn.Module)]


def _explodes(model: DiffusionModel) -> bool:
    return isinstance(model.denoiser.process, VarianceExploding)


def _consistency(model: DiffusionModel) -> Target:
    """As a consistency model. ValueError for others."""
    d = model.denoiser
    reasons = {
        "it is no consistency student with the published boundary (CmBoundary)": (
            not isinstance(d.parameterization, CmBoundary)
        ),
        "its process is not variance exploding": d.own != d.process,
        "its sampler is not multistep consistency sampling on a Karras grid down to t_min": not (
            isinstance(model.sampler, Renoise)
            and isinstance(model.sampler.times, Karras | Auto)  # the same on this process
            and model.sampler.times.end == "t_min"
        ),
        "its images are not in [-1, 1]": not isinstance(model.codec.spec, Pixels),
        f"its images are not square: {model.shape}": model.shape[1] != model.shape[2],
    }
    name = "ConsistencyModelPipeline"
    unet = _unet(model, name)
    spec: Any = d.network.spec
    known = ("log_sigma", None) if isinstance(d.network, UNetModule) else ("log_sigma",)
    reasons["its network takes the time in another unit than 250 ln t"] = (
        spec.time_input not in known
    )
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"diffusers' {name} cannot hold this model: {reason}")
    if (GRID - 1) % model.sampler.steps:
        raise ValueError(
            f"diffusers' {name} walks another grid of {model.sampler.steps} steps than this "
            "student's: --steps 1, 2, 4, 5, 8 … whose multiple is 4000"
        )
    scheduler = library_class("diffusers.CMStochasticIterativeScheduler")(
        num_train_timesteps=GRID,
        sigma_min=d.process.t_min,
        sigma_max=d.process.t_max,
        sigma_data=d.parameterization.sigma_data,  # type: ignore[attr-defined]
        rho=model.sampler.times.rho,  # type: ignore[attr-defined]
        clip_denoised=model.clip is not None,
    )
    steps = dict.fromkeys((model.sampler.steps, 1, 2))
    return Target(library_class(f"diffusers.{name}")(unet, scheduler), tuple(steps))


def _scheduled(model: DiffusionModel) -> Target:
    """As a model on a table, under the scheduler that samples as it does. ValueError for others."""
    name = "DDPMPipeline"
    network, codec = model.denoiser.network, model.codec
    latent = isinstance(network.spec, DitTransformer2d)
    if latent:
        name = "DiTPipeline"
        if not isinstance(codec, AutoencoderKlModule):
            raise ValueError(f"diffusers' {name} needs an autoencoder_kl as its codec")
    elif not isinstance(codec.spec, Pixels):
        raise ValueError(f"diffusers' {name} cannot hold this model: its images are not in [-1, 1]")
    elif model.classes:
        raise ValueError(f"diffusers' {name} cannot hold this model: it asks for no class")
    if model.clip is not None:
        raise ValueError(f"diffusers' {name} cannot hold this model: its sampling cuts x0")
    schedule = schedule_of(model.denoiser, model.sampler)
    check_told_by_steps(schedule)
    if latent:
        guidance_of(model)  # or it is refused
        module = copy.deepcopy(_module(network, name)).cpu().eval()
        vae = copy.deepcopy(codec.module).cpu().eval()  # type: ignore[union-attr]
        made = library_class(f"diffusers.{name}")(module, vae, schedule.build())
    else:
        made = library_class(f"diffusers.{name}")(_unet(model, name), schedule.build())
    return Target(made, (model.sampler.steps,))


def _unet(model: DiffusionModel, pipeline: str) -> nn.Module:
    """A UNet2DModel of diffusers that computes what the network does. ValueError for others."""
    network = model.denoiser.network
    if not isinstance(network, UNetModule):
        return copy.deepcopy(_module(network, pipeline, UNet2d)).cpu().eval()
    spec = network.spec
    if spec.extra or spec.multipliers[0] != 1 or spec.time_input == "thousand":
        raise ValueError(
            "diffusers' UNet2DModel cannot hold this network: it has other inputs than noise level "
            "and label"
        )
    unet: nn.Module = library_class("diffusers.UNet2DModel")(**unet_config(network))
    unet.load_state_dict(unet_weights(network), strict=True)
    return unet.eval()


def _module(network: Any, pipeline: str, kind: type = DitTransformer2d) -> nn.Module:
    """The module of diffusers inside. ValueError for a network of another kind, or one that reads
    more.
    """
    if not isinstance(network, DiffusersModule) or not isinstance(network.spec, kind):
        told, needs = kind_of(type(network.spec)), "unet, unet_2d"
        raise ValueError(
            f"diffusers' {pipeline} cannot hold this model: its network is {told}, not {needs}"
        )
    if network.added:
        raise ValueError(
            f"diffusers' {pipeline} cannot hold this network: it has other inputs than noise level "
            "and label"
        )
    return network.module


@torch.no_grad()
def _difference(model: DiffusionModel, target: Target, steps: int) -> float:
    """The largest pixel difference between the pipeline's images and the sampler's, from the same
    noise.
    """
    model.to("cpu")
    model.denoiser.eval()
    answer = model.answer(Request(model.asked_of(0, NUM), num=NUM, steps=steps))
    # The noise that the pipeline will draw from a generator of the same seed.
    draws = Drawn(1, NUM)
    noise = draws.normal(*model.shape)
    process, cond = model.denoiser.process, answer.cond(range(NUM))
    x = answer.sampler(answer.denoise(), process, noise, cond, draws)
    check_images(x)
    mine = model.codec.decode(x)
    call = target.call(model, NUM)
    if "batch_size" in call and "class_labels" in call:
        call["class_labels"] = torch.tensor(call["class_labels"])
    found = target.pipeline(
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
        **call,
    ).images
    theirs = torch.from_numpy(found).permute(0, 3, 1, 2)
    return (mine - theirs).abs().max().item()


def _snippet(model: DiffusionModel, target: Target) -> str:
    """Python that makes an image, in the pipeline's folder."""
    call = target.call(model, 1)
    call.pop("batch_size", None)
    asked = {"num_inference_steps": target.steps[0], **call}
    return "\n".join(
        [
            "import torch",
            f"from diffusers import {target.name}",
            "",
            f'pipe = {target.name}.from_pretrained(".")',
            "image = pipe(",
            *(f"    {name}={value!r}," for name, value in asked.items()),
            "    generator=torch.Generator().manual_seed(0),",
            ").images[0]",
            'image.save("image.png")',
        ]
    )
