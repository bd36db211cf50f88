"""Export of text-to-image models to diffusers: a `StableDiffusionPipeline`, which needs no fewstep.

A bare call of it, `pipe(prompt, num_inference_steps=n)`, samples as the model does, wherever the
scheduler can be told so by its configuration. What was distilled at one guidance scale is not
guided again: the U-Net gets a place for the scale whose weights are zero, as with that the pipeline
evaluates it once a step, whatever its guidance_scale. A U-Net that reads where its jump ends takes
that as class_labels, which no pipeline of diffusers hands over: the card's snippet does, by a hook.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.choice import kind_of
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.types import Sample, Time
from fewstep.export.card import Card, write_card
from fewstep.export.drawn import Drawn
from fewstep.export.rounding import store
from fewstep.export.schedules import Schedule, guidance_of, schedule_of
from fewstep.files import new_folder, take_mode, write_json
from fewstep.finite import check_images
from fewstep.models.autoencoder_kl import AutoencoderKlModule
from fewstep.models.bundle import DiffusionModel
from fewstep.models.clip_text import ClipTextModule
from fewstep.models.exported import EXPORT, noted
from fewstep.models.library import library_class, quiet
from fewstep.models.request import Request
from fewstep.models.unet2d_condition import UNet2dConditionModule

TOLERANCE = 1e-4
PROMPTS = ("a photo of a cat", "a small red circle")  # where the model says no examples
PIPELINE = "diffusers.StableDiffusionPipeline"


def export_pipeline(
    model: DiffusionModel, folder: Path, card: Card, dtype: torch.dtype = torch.float32
) -> float:
    """Writes the pipeline's folder, loads it again and returns the largest difference of its images
    from the model's own. dtype: of the files.

    Raises ValueError where diffusers cannot say what the model is, or where the images differ by
    more than 1e-4; then nothing is left under the folder's name. ImportError without diffusers.
    """
    schedule = schedule_of(model.denoiser, model.sampler)
    with new_folder(folder) as beside:
        with quiet():
            pipeline = pipeline_of(model, schedule)
            for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
                store(part, dtype)
            pipeline.save_pretrained(beside)
        facts = {"call": call_of(model, schedule), "model": noted(model)}
        write_json(beside / EXPORT, facts)
        told = {"scheduler": schedule.name, **call_of(model, schedule)}
        snippet = _snippet(model, schedule)
        write_card(beside, card, model.card, told, snippet, few_step=bool(model.distilled))
        for file in beside.rglob("*"):
            if file.is_file():
                take_mode(file, beside / EXPORT)
        with quiet():
            # As the card's snippet does: of what is stored in 16 bits transformers would keep them,
            # and diffusers would not.
            again = library_class(PIPELINE).from_pretrained(
                beside, safety_checker=None, low_cpu_mem_usage=False
            )
            again.to(torch.float32)
        difference = compared(model, again, schedule)
    return difference


def pipeline_of(model: DiffusionModel, schedule: Schedule, bare: bool = True) -> Any:
    """The pipeline, of copies of the model's modules. bare: a call without guidance_scale is right,
    too.
    """
    network, codec, conditioner = parts_of(model)
    if bare and guidance_of(model) == 1 and "guidance" not in network.inputs:
        network = network.with_inputs({"guidance"})  # type: ignore[assignment]
    return library_class(PIPELINE)(
        vae=copy.deepcopy(codec.module).cpu().eval(),
        text_encoder=copy.deepcopy(conditioner.module).cpu().eval(),
        tokenizer=conditioner.clip_tokenizer(),
        unet=copy.deepcopy(network.module).cpu().eval(),
        scheduler=schedule.build(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def parts_of(
    model: DiffusionModel,
) -> tuple[UNet2dConditionModule, AutoencoderKlModule, ClipTextModule]:
    """U-Net, autoencoder and text encoder. ValueError where one is of another kind."""
    network, codec, conditioner = model.denoiser.network, model.codec, model.conditioner
    if not isinstance(network, UNet2dConditionModule):
        raise ValueError(_other("network", network))
    if not isinstance(codec, AutoencoderKlModule):
        raise ValueError(_other("codec", codec))
    if not isinstance(conditioner, ClipTextModule):
        raise ValueError(_other("conditioner", conditioner))
    return network, codec, conditioner


def _other(what: str, module: Any) -> str:
    kind = kind_of(type(module.spec))
    return f"diffusers' StableDiffusionPipeline cannot hold this model: its {what} is {kind}"


def prompts_of(model: DiffusionModel) -> list[str]:
    """Two that it was made for, where it says some."""
    return [text or "" for text in model.examples.get("caption", PROMPTS)[:2]]


@torch.no_grad()
def compared(model: DiffusionModel, pipeline: Any, schedule: Schedule) -> float:
    """The largest pixel difference of the pipeline's images from the model's, of the same noise.
    ValueError for more than 1e-4.
    """
    prompts = prompts_of(model)
    latents = Drawn(1, len(prompts)).normal(*model.shape)
    mine = _mine(model, prompts, latents, Drawn(2, len(prompts)))
    pipeline.set_progress_bar_config(disable=True)
    if "s" in model.denoiser.inputs:
        ends = ends_of(model)

        def tell(unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            return args, {**kwargs, "class_labels": torch.tensor([ends[int(args[1])]])}

        pipeline.unet.register_forward_pre_hook(tell, with_kwargs=True)
    with quiet():
        theirs = pipeline(
            prompts,
            latents=latents,
            generator=torch.Generator().manual_seed(2),
            output_type="pt",
            **call_of(model, schedule),
        ).images
    difference = (mine - theirs).abs().max().item()
    if not difference <= TOLERANCE:
        raise ValueError(
            f"the exported pipeline's images differ from the model's by {difference:.2g}: not "
            "exported"
        )
    return difference


def _mine(model: DiffusionModel, prompts: list[str], latents: Sample, draws: Drawn) -> Tensor:
    model.to("cpu")
    model.denoiser.eval()
    answer = model.answer(Request({"caption": prompts}))
    cond = answer.cond(range(len(prompts)))
    x0 = answer.sampler(answer.denoise(), model.denoiser.process, latents, cond, draws)
    images = model.codec.decode(x0).float()
    check_images(images)
    return images


def ends_of(model: DiffusionModel) -> dict[int, float]:
    """Where each jump of the model's sampler ends, by the index at which the network is asked."""
    ends: dict[int, float] = {}

    def ask(x_t: Sample, t: Time, cond: Cond, s: Time | None = None) -> Sample:
        ends[int(t)] = float(t if s is None else s)
        return x_t

    noise = torch.zeros(1, 1)
    model.sampler(ask, model.denoiser.process, noise, Cond({}), Drawn(0, 1))
    return ends


def call_of(model: DiffusionModel, schedule: Schedule) -> dict[str, Any]:
    """What the pipeline is called with, beside the prompt."""
    return {**schedule.call, "guidance_scale": guidance_of(model)}


def _snippet(model: DiffusionModel, schedule: Schedule) -> str:
    """Python that makes an image, in the pipeline's folder."""
    return "\n".join(
        [
            "import torch",
            "from diffusers import StableDiffusionPipeline",
            "",
            'pipe = StableDiffusionPipeline.from_pretrained(".").to(torch.float32)',
            *(_told_ends(model) if "s" in model.denoiser.inputs else ()),
            *an_image(model, schedule),
        ]
    )


def _told_ends(model: DiffusionModel) -> list[str]:
    """Lines of Python with which `pipe` tells the U-Net where its jumps end."""
    return [
        f"ends = {ends_of(model)!r}  # of the step from each time: the U-Net reads it",
        "",
        "",
        "def tell(unet, args, kwargs):",
        '    kwargs["class_labels"] = torch.tensor([ends[int(args[1])]], device=args[0].device)',
        "    return args, kwargs",
        "",
        "",
        "pipe.unet.register_forward_pre_hook(tell, with_kwargs=True)",
    ]


def an_image(model: DiffusionModel, schedule: Schedule) -> list[str]:
    """Lines of Python that make one with `pipe`."""
    return [
        "image = pipe(",
        f"    {json.dumps(prompts_of(model)[0])},",
        *(f"    {name}={value!r}," for name, value in call_of(model, schedule).items()),
        "    generator=torch.Generator().manual_seed(0),",
        ").images[0]",
        'image.save("image.png")',
    ]
