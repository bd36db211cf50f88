"""Recipes of captioned pictures of emoji (32×32, of `data.path=`): text to image on real data.

The folder holds pictures and a metadata.csv with the columns file_name, text and tone, the words of
`text` that say a skin tone; these a training leaves out of half of the captions. What is
transparent lies on white.
"""

from fewstep.data.table import Table
from fewstep.diffusion.solvers import Euler
from fewstep.learning.losses import Squared
from fewstep.learning.method import Method
from fewstep.learning.schedules import Cosine
from fewstep.methods.diffusion import Diffusion
from fewstep.methods.latent_consistency import LatentConsistency
from fewstep.methods.multi_boundary import MultiBoundary
from fewstep.models.classifier import ClassifierNetwork
from fewstep.models.lora import Lora
from fewstep.models.source import Saved
from fewstep.parts.autoencoder import Autoencoding
from fewstep.parts.clip import Contrastive, FreshClip
from fewstep.recipes._latent import GRID, SHORT, small_autoencoder, small_teacher, small_text
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW

PICTURES = Table(label="none", size=32, channels="rgb", unsaid="tone")


def emoji_vae() -> Run:
    """The autoencoder of emoji: 32×32 pixels to 8×8 latents of 4 channels.

    The squared error, by which a short training gets further than by the absolute one. 0.93 M
    parameters.
    """
    return Run(
        data=PICTURES,
        method=Autoencoding(distance=Squared()),
        teacher=small_autoencoder(),
        trainer=TrainerConfig(
            steps=2000,
            batch=8,
            optimizer=AdamW(lr=2e-3),
            schedule=Cosine(warmup=100),
            ema=(0.999,),
            save_every=1000,
            health_every=1000,
        ),
    )


def emoji_clip() -> Run:
    """The text encoder of emoji: three layers of width 128, 32 tokens, trained against pictures.

    The longest caption has 20 tokens. The tower of the pictures is also the network in whose
    features sets of emoji are compared.
    """
    return Run(
        data=PICTURES,
        method=Contrastive(rows=64),
        teacher=FreshClip(
            text=small_text(max_position_embeddings=32),
            pictures=ClassifierNetwork(channels=24, features=128, dropout=0.0),
            merges=1024,
        ),
        trainer=TrainerConfig(
            steps=800,
            batch=64,
            optimizer=AdamW(lr=1e-3, weight_decay=0.05),
            schedule=Cosine(warmup=100),
            ema=(0.99,),
            health_every=250,
        ),
    )


def emoji_teacher() -> Run:
    """The small Stable Diffusion of emoji: a U-Net of 4.3 M parameters on 8×8 latents.

    Noise prediction on the table of Stable Diffusion, between the autoencoder of
    `runs/emoji_vae` and the text encoder of `runs/emoji_clip`, which are trained before.
    """
    return Run(
        data=PICTURES,
        method=Diffusion(solver_steps=50, solver=Euler(), times=GRID, default_guidance=2.0),
        teacher=small_teacher("runs/emoji_vae", "runs/emoji_clip"),
        trainer=TrainerConfig(
            steps=4000,
            batch=64,
            optimizer=AdamW(lr=1e-3),
            schedule=Cosine(warmup=200),
            ema=(0.999,),
            save_every=500,
            health_every=1000,
        ),
    )


def student_of(method: Method) -> Run:
    """A student of the teacher of emoji, as a LoRA."""
    return Run(
        data=PICTURES,
        method=method,
        teacher=Saved("runs/emoji_teacher"),
        adaptation=Lora(rank=32),
        trainer=TrainerConfig(
            steps=600,
            batch=32,
            optimizer=AdamW(lr=2e-3),
            schedule=Cosine(warmup=30),
            ema=(0.98,),
            save_every=200,
            health_every=200,
        ),
    )


def emoji_lcm_lora() -> Run:
    """LCM-LoRA of emoji: the guided teacher in 1 to 4 steps, each at half the cost. Half of the
    rows are the student's own answers, as its second step is shown them.
    """
    return student_of(LatentConsistency(bins=SHORT, guidance=None, simulated=0.5))


def emoji_mbcd_lora() -> Run:
    """Multi-boundary distillation of emoji as a LoRA: four deterministic steps, DDIM's own. Half of
    the rows are the student's own answers.
    """
    return student_of(MultiBoundary(bins=SHORT, times=GRID, simulated=0.5))
