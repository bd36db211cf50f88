"""Stable Diffusion 1.5 as its files describe it: what its name stands for before they are there."""

from typing import Any

from fewstep.diffusion.parameterization import Epsilon
from fewstep.diffusion.process import VariancePreservingTable
from fewstep.models.autoencoder_kl import AutoencoderKl
from fewstep.models.clip_text import ClipText
from fewstep.models.source import Fresh
from fewstep.models.unet2d_condition import UNet2dCondition

NAME = "stable-diffusion-v1-5/stable-diffusion-v1-5"
"""Where the weights are on the Hugging Face hub."""
UNET: dict[str, Any] = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
    "attention_head_dim": 8,
}
"""859,520,964 parameters, on latents of 4×64×64."""
AUTOENCODER: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
"""83,653,863 parameters, from images of 3×512×512."""
TEXT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 49408,
    "projection_dim": 768,
}
"""The text encoder of CLIP ViT-L/14: 123,060,480 parameters, 77 tokens of width 768."""


def fresh() -> Fresh:
    """The same with new weights, for what is reckoned from sizes alone."""
    return Fresh(
        network=UNet2dCondition(UNET),
        process=VariancePreservingTable(),
        parameterization=Epsilon(),
        codec=AutoencoderKl(AUTOENCODER),
        conditioner=ClipText(TEXT),
    )
