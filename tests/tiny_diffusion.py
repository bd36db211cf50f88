"""A Stable Diffusion of a size for tests: our own model, and a pipeline's folder."""

from fewstep.models.source import Fresh
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
