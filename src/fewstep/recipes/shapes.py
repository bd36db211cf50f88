"""Recipes of drawn shapes with captions (32×32): text to image in the small."""

from fewstep.data.shapes import Shapes
from fewstep.diffusion.solvers import Euler
from fewstep.diffusion.times import Uniform
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.losses import Squared
from fewstep.learning.method import Method
from fewstep.learning.schedules import Cosine
from fewstep.methods.continuous_consistency import ContinuousConsistency
from fewstep.methods.diffusion import Diffusion
from fewstep.methods.dmd2 import DMD2
from fewstep.methods.guided_distillation import GuidedDistillation
from fewstep.methods.latent_consistency import LatentConsistency
from fewstep.methods.multi_boundary import MultiBoundary
from fewstep.methods.phased_consistency import PhasedConsistency
from fewstep.methods.progressive import Progressive
from fewstep.methods.trajectory_consistency import TrajectoryConsistency
from fewstep.metrics.classifier import Classification
from fewstep.models.adapters import FullCopy
from fewstep.models.classifier import ClassifierNetwork, FreshClassifier
from fewstep.models.lora import Lora
from fewstep.models.source import Saved
from fewstep.parts.autoencoder import Autoencoding
from fewstep.parts.clip import Contrastive, FreshClip
from fewstep.recipes._latent import (
    BINS,
    GRID,
    SHORT,
    STEPS,
    consistency_distillation,
    consistency_training,
    small_autoencoder,
    small_teacher,
    small_text,
)
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW

TEACHER = "shapes_teacher"


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
        teacher=small_autoencoder(),
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

    0.78 M parameters with what it is trained with. Shape is what captions differ in least, so they
    say four fifths of what there is. Held-out loss 0.77 among 64 pictures, seed 0, 2026-11-28.
    """
    return Run(
        data=Shapes(mention=0.8),
        method=Contrastive(rows=64),
        teacher=FreshClip(
            text=small_text(),
            pictures=ClassifierNetwork(channels=24, features=128, dropout=0.0),
        ),
        trainer=TrainerConfig(
            steps=1200,
            batch=64,
            optimizer=AdamW(lr=2e-3, weight_decay=0.05),
            schedule=Cosine(warmup=100),
            ema=(0.99,),
            health_every=250,
        ),
    )


def shapes_teacher() -> Run:
    """The shipped small Stable Diffusion of drawn shapes: a U-Net of 4.3 M parameters on 8×8
    latents.

    Noise prediction on the table of Stable Diffusion, between the autoencoder of `runs/shapes_vae`
    and the text encoder of `runs/shapes_clip`, which are trained before. Made by `fewstep train`
    with these three names, then `python tools/ship.py runs/shapes_teacher`: 15, 8 and 93 minutes on
    one core of a busy machine, seed 0, 2026-11-28. What it reaches: docs/results/shapes.md.
    """
    return Run(
        data=Shapes(),
        method=Diffusion(solver_steps=50, solver=Euler(), times=GRID, default_guidance=3.0),
        teacher=small_teacher("runs/shapes_vae", "runs/shapes_clip"),
        trainer=TrainerConfig(
            steps=8000,
            batch=64,
            optimizer=AdamW(lr=1e-3),
            schedule=Cosine(warmup=200),
            ema=(0.999,),
            save_every=500,
            health_every=500,
        ),
    )


def student_of(
    method: Method, *, lr: float, steps: int = 1000, batch: int = 32, lora: int = 0
) -> Run:
    """A student of shapes_teacher. lora: the rank of its addition; 0 trains all weights."""
    return Run(
        data=Shapes(),
        method=method,
        teacher=Saved(TEACHER),
        adaptation=Lora(rank=lora) if lora else FullCopy(),
        trainer=TrainerConfig(
            steps=steps,
            batch=batch,
            optimizer=AdamW(lr=lr),
            schedule=Cosine(warmup=50),
            ema=(0.99,),
            save_every=250,
        ),
    )


def shapes_ct() -> Run:
    """Consistency training of drawn shapes, from the teacher's weights: no teacher is asked.

    Not guided, for nobody says what the guided answer would be.
    """
    return student_of(consistency_training(), lr=2e-4)


def shapes_cd() -> Run:
    """Consistency distillation of drawn shapes: one DDIM step of the guided teacher, the student
    itself as target.
    """
    return student_of(consistency_distillation(), lr=2e-4)


def shapes_guided_lora() -> Run:
    """Guidance 3 in a LoRA: as many steps as before, at half the cost."""
    return student_of(GuidedDistillation(guidance=GuidanceRange(3.0, 3.0)), lr=1e-3, lora=32)


def shapes_lcm() -> Run:
    """Latent consistency distillation: one student of all scales of guidance from 1 to 5."""
    return student_of(LatentConsistency(), lr=2e-4)


def shapes_lcm_lora() -> Run:
    """LCM-LoRA: the teacher's one scale. Half of the rows are the student's own answers, as its
    second step is shown them.
    """
    method = LatentConsistency(bins=SHORT, guidance=None, simulated=0.5)
    return student_of(method, lr=2e-3, steps=2400, lora=32)


def shapes_mbcd() -> Run:
    """Multi-boundary distillation of all weights: four deterministic steps, DDIM's own."""
    return student_of(MultiBoundary(bins=BINS, times=GRID), lr=2e-4)


def shapes_mbcd_lora() -> Run:
    """Multi-boundary distillation as a LoRA: four deterministic steps; `method.segments=2` makes
    two. Half of the rows are the student's own answers.
    """
    method = MultiBoundary(bins=SHORT, times=GRID, simulated=0.5)
    return student_of(method, lr=2e-3, steps=2400, lora=32)


def shapes_pcm_lora() -> Run:
    """Phased consistency as a LoRA, with a discriminator on the teacher's features."""
    return student_of(PhasedConsistency(bins=BINS), lr=1e-3, lora=32)


def shapes_tcd_lora() -> Run:
    """Trajectory consistency distillation as a LoRA: one answer for all ends of a jump."""
    return student_of(TrajectoryConsistency(target_decay=0.0), lr=1e-3, lora=32)


def shapes_scm() -> Run:
    """Simplified continuous-time consistency distillation: no intervals at all."""
    method = ContinuousConsistency(sample_times=Uniform(whole=True))
    return student_of(method, lr=1e-4, batch=16)


def shapes_dmd2_lora() -> Run:
    """DMD2 with three networks on one base: the student and the denoiser of its samples are LoRAs,
    the teacher is the base without one.
    """
    return student_of(DMD2(steps=4, sample_times=STEPS), lr=3e-4, steps=400, lora=32)


def shapes_progressive() -> Run:
    """Progressive distillation: 32 guided steps become 16, 8 and 4."""
    return student_of(Progressive(), lr=2e-4, steps=1500)
