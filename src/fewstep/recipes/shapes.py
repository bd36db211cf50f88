"""Recipes of drawn shapes with captions (32×32): text to image in the small."""

from fewstep.data.shapes import Shapes
from fewstep.diffusion.parameterization import Epsilon
from fewstep.diffusion.process import VariancePreservingTable
from fewstep.learning.losses import Squared
from fewstep.learning.schedules import Cosine
from fewstep.methods.diffusion import Diffusion
from fewstep.metrics.classifier import Classification
from fewstep.models.autoencoder_kl import AutoencoderKl
from fewstep.models.classifier import ClassifierNetwork, FreshClassifier
from fewstep.models.clip_text import ClipText
from fewstep.models.source import Fresh
from fewstep.models.unet2d_condition import UNet2dCondition
from fewstep.parts.autoencoder import Autoencoding, FreshAutoencoder
from fewstep.parts.clip import Contrastive, FreshClip
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def shapes_classifier() -> Run:
    """The shipped features of drawn shapes, in which distances between sets of them are measured.

    Cross entropy over all 324 objects (size, colour, shape and place). Made by `fewstep train
    shapes_classifier`, then `python tools/ship.py runs/shapes_classifier`: 4 minutes on one core,
    seed 0, 2026-11-28. All 4,072 held-out pictures are right. 2,000 of them are at a Fréchet
    distance of 17.5 from training images, with the contours blurred over a pixel at 30.7. Pictures
    of two objects, which it never saw, are told apart too: 25.8, blurred 46.9, and those of a row
    without those of a column 298.
    """
    return Run(
        data=Shapes(),
        method=Classification(),
        teacher=FreshClassifier(ClassifierNetwork(channels=24)),
        trainer=TrainerConfig(
            steps=1800,
            optimizer=AdamW(lr=3e-3, weight_decay=0.02),
            schedule=Cosine(warmup=100),
            ema=(0.99,),
            health_every=250,
        ),
    )


def shapes_vae() -> Run:
    """The autoencoder of drawn shapes: 32×32 pixels to 8×8 latents of 4 channels.

    The squared error: where most pixels are ground, the absolute one rests for hundreds of steps
    at a picture that is all ground. 0.93 M parameters; of 2,000 held-out pictures with full
    captions every reconstruction is read as what it shows (`fewstep evaluate runs/shapes_vae
    split=test mention=1 --reference shapes --measures caption_accuracy,frechet`), at a Fréchet
    distance of 11.0. About 15 minutes on one core, seed 0, 2026-11-28.
    """
    return Run(
        data=Shapes(),
        method=Autoencoding(distance=Squared()),
        teacher=FreshAutoencoder(
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
        ),
        trainer=TrainerConfig(
            steps=6000,
            batch=8,
            optimizer=AdamW(lr=2e-3),
            schedule=Cosine(warmup=100),
            ema=(0.999,),
            save_every=1000,
            health_every=1000,
        ),
    )


def shapes_clip() -> Run:
    """The text encoder of drawn shapes: three layers of width 128, 77 tokens, trained against
    pictures.

    0.75 M parameters with what it is trained with. Held-out loss 2.15 among 64 pictures, whose
    captions leave out half of what they show. 20 minutes on one core of a busy machine, seed 0,
    2026-11-28.
    """
    return Run(
        data=Shapes(),
        method=Contrastive(rows=64),
        teacher=FreshClip(
            text=ClipText(
                {
                    "hidden_size": 128,
                    "intermediate_size": 512,
                    "num_hidden_layers": 3,
                    "num_attention_heads": 4,
                    "projection_dim": 128,
                }
            ),
            pictures=ClassifierNetwork(channels=16, features=128, dropout=0.0),
        ),
        trainer=TrainerConfig(
            steps=1500,
            batch=64,
            optimizer=AdamW(lr=1e-3, weight_decay=0.05),
            schedule=Cosine(warmup=100),
            ema=(0.99,),
            health_every=250,
        ),
    )


def shapes_teacher() -> Run:
    """The small Stable Diffusion of drawn shapes: a U-Net of 4.3 M parameters on 8×8 latents.

    Noise prediction on the table of Stable Diffusion, between the autoencoder of
    `runs/shapes_vae` and the text encoder of `runs/shapes_clip`, which are trained before.
    """
    return Run(
        data=Shapes(),
        method=Diffusion(),
        teacher=Fresh(
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
            codec_from="runs/shapes_vae",
            conditioner_from="runs/shapes_clip",
        ),
        trainer=TrainerConfig(
            steps=6000,
            batch=64,
            optimizer=AdamW(lr=1e-3),
            schedule=Cosine(warmup=200),
            ema=(0.999,),
            save_every=500,
            health_every=500,
        ),
    )
