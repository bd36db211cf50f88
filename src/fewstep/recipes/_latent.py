"""What the recipes of Stable Diffusions share: the small one's parts, and the grid of students."""

from fewstep.diffusion.parameterization import Epsilon
from fewstep.diffusion.process import VariancePreservingTable
from fewstep.diffusion.solvers import Euler
from fewstep.diffusion.times import Strided, Trailing
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.losses import Huber
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.methods.consistency_training import ConsistencyTraining
from fewstep.models.autoencoder_kl import AutoencoderKl
from fewstep.models.clip_text import ClipText
from fewstep.models.source import Fresh
from fewstep.models.unet2d_condition import UNet2dCondition
from fewstep.parts.autoencoder import FreshAutoencoder

GRID = Trailing()
BINS = 40
"""Intervals of the grid: of these the times of 4 steps are diffusers' own (999, 749, 499, 249)."""
SHORT = 20
"""Intervals of a short training's grid: what a student knows at the data comes to the noise over
fewer of them, and the times of 4 and 2 steps are still diffusers' own.
"""
STEPS = Strided(GRID, BINS)


def small_autoencoder() -> FreshAutoencoder:
    """From 32×32 pixels to 8×8 latents of 4 channels; 0.93 M parameters."""
    return FreshAutoencoder(
        AutoencoderKl(
            {
                "block_out_channels": [16, 48, 72],
                "down_block_types": ["DownEncoderBlock2D"] * 3,
                "up_block_types": ["UpDecoderBlock2D"] * 3,
                "layers_per_block": 1,
                "latent_channels": 4,
                "norm_num_groups": 8,
                "sample_size": 32,
            }
        )
    )


def small_text(**more: int) -> ClipText:
    """Three layers of width 128. more: options of transformers' CLIPTextConfig."""
    return ClipText(
        {
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "projection_dim": 128,
            **more,
        }
    )


def small_teacher(codec_from: str, conditioner_from: str) -> Fresh:
    """A U-Net of 4.3 M parameters that predicts noise on the table of Stable Diffusion, between the
    trained parts of these runs.
    """
    return Fresh(
        network=UNet2dCondition(
            {
                "block_out_channels": [64, 128],
                "down_block_types": ["CrossAttnDownBlock2D"] * 2,
                "up_block_types": ["CrossAttnUpBlock2D"] * 2,
                "layers_per_block": 1,
                "norm_num_groups": 16,
                "attention_head_dim": 4,
            }
        ),
        process=VariancePreservingTable(),
        parameterization=Epsilon(),
        codec_from=codec_from,
        conditioner_from=conditioner_from,
    )


def consistency_training() -> ConsistencyTraining:
    """Over the whole grid from the beginning, all intervals alike, the student itself as target.
    Not guided, for nobody says what the guided answer would be.
    """
    return ConsistencyTraining(
        last=BINS,
        curriculum="fixed",
        times=GRID,
        density=None,
        distance=Huber(),
        weighting="uniform",
        guidance=GuidanceRange(),
        sample_times=STEPS,
    )


def consistency_distillation(guidance: GuidanceRange | None = None) -> ConsistencyDistillation:
    """One DDIM step of the teacher, the student itself as target. guidance: null is the teacher's
    own.
    """
    return ConsistencyDistillation(
        bins=BINS,
        times=GRID,
        solver=Euler(),
        distance=Huber(),
        guidance=guidance,
        target_decay=0.0,
        sample_times=STEPS,
    )
