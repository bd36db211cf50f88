"""A Stable Diffusion of a size for tests: our own model, and a pipeline's folder."""

import dataclasses

import torch

from fewstep.models import sd15
from fewstep.models.source import Fresh
from fewstep.models.space import Image, Space, Text
from fewstep.models.unet2d_condition import UNet2dCondition
from tests.tiny_parts import TINY_AUTOENCODER, TINY_CLIP

TINY_UNET = UNet2dCondition(
    {
        "block_out_channels": [8, 16],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
    }
)
"""4×4×4 beside a text; 53,000 parameters."""

TINY = Fresh(network=TINY_UNET, codec=TINY_AUTOENCODER, conditioner=TINY_CLIP)
DATA = Space((3, 8, 8), {"image": Image((3, 8, 8)), "caption": Text()})
PROMPTS = ["a red circle", "two blue squares"]
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PNDM = {**SD, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}
"""The scheduler of Stable Diffusion 1.5; 2.1 has it with v_prediction."""
SD15 = {
    "UNET": {
        **sd15.UNET,
        "block_out_channels": [8] * 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
    },
    "AUTOENCODER": TINY_AUTOENCODER.config,
    "TEXT": TINY_CLIP.config,
}
"""Stable Diffusion 1.5 in miniature, by the names in `models.sd15`; its four levels have 49,000
parameters."""


def tiny_pipeline(scheduler="PNDMScheduler", schedule=PNDM, network=TINY_UNET):
    """A random StableDiffusionPipeline, whose weights are everywhere."""
    import diffusers

    model = dataclasses.replace(TINY, network=network).load(DATA, seed=0)
    generator = torch.Generator().manual_seed(1)
    for module in (model.denoiser, model.codec, model.conditioner):
        for parameter in module.parameters():
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return diffusers.StableDiffusionPipeline(
        vae=model.codec.module,
        text_encoder=model.conditioner.module,
        tokenizer=model.conditioner.clip_tokenizer(),
        unet=model.denoiser.network.module,
        scheduler=getattr(diffusers, scheduler)(**schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
