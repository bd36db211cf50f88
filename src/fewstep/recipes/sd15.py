"""Recipes of Stable Diffusion 1.5 (512×512): students of 4 steps as LoRA, on a card of 15 GB.

The teacher is the model of that name on the Hugging Face hub, downloaded at first use; any folder
or single file of Stable Diffusion 1.x is one too (`teacher=DIR`). The data are pictures with
captions beside them in data.path; `fewstep data cache DIR size=512 --model TEACHER --out CACHE`,
then `data=cached data.path=CACHE`, trains without autoencoder and text encoder.

All roles stand on one base in fp16, under additions of rank 64 in fp32 (67 M parameters); 4 rows
in a pass. Where a card has it, `trainer.precision=bf16` needs no loss scale. Health is left out: it
samples, and looks at 256 pictures at once.
"""

from fewstep.data.folder import Folder
from fewstep.diffusion.samplers import Ode
from fewstep.diffusion.solvers import Dpmpp2m
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.method import Method
from fewstep.learning.schedules import Constant
from fewstep.methods.dmd2 import DMD2
from fewstep.methods.guided_distillation import GuidedDistillation
from fewstep.methods.latent_consistency import LatentConsistency
from fewstep.methods.multi_boundary import MultiBoundary
from fewstep.models.lora import Lora
from fewstep.models.sd15 import NAME
from fewstep.models.source import Saved
from fewstep.recipes._latent import (
    BINS,
    GRID,
    STEPS,
    consistency_distillation,
    consistency_training,
)
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW

GUIDANCE = GuidanceRange(7.5, 7.5)


def lora_of(
    method: Method,
    *,
    steps: int = 2000,
    alpha: float | None = None,
    lr: float = 1e-4,
    clip: float = 1.0,
) -> Run:
    """A student whose additions are those of released LCM-LoRAs: rank 64 at 14 kinds of layers."""
    return Run(
        data=Folder(split="all", size=512, channels="rgb", label="none"),
        method=method,
        teacher=Saved(NAME),
        adaptation=Lora(rank=64, alpha=alpha),
        trainer=TrainerConfig(
            steps=steps,
            batch=12,
            micro_batch=4,
            optimizer=AdamW(lr=lr),
            schedule=Constant(warmup=100),
            clip=clip,
            ema=(0.99,),
            precision="fp16",
            checkpointing=True,
            health_every=0,
        ),
    )


def sd15_ct() -> Run:
    """Consistency training of Stable Diffusion 1.5 as a LoRA: no teacher is asked.

    The grid of DDIM with 40 intervals throughout, all of them alike, Huber's distance, the student
    itself as target. It learns without guidance. `--steps 4`: the student's own number is 2.
    """
    return lora_of(consistency_training())


def sd15_cd() -> Run:
    """Consistency distillation of Stable Diffusion 1.5, guided at 7.5, as a LoRA.

    One DDIM step of the teacher on a grid of 40 intervals, Huber's distance, the student itself as
    target. `--steps 4`: the student's own number is 2.
    """
    return lora_of(consistency_distillation(GUIDANCE))


def sd15_guided_lora() -> Run:
    """Guidance 7.5 of Stable Diffusion 1.5 in a LoRA (arXiv:2210.03142): at CFG 1 it answers what
    the base answers at 7.5, in half the time a step.

    Of any number of steps; saved with 20 of DPM-Solver++.
    """
    sampler = Ode(20, GRID, Dpmpp2m())
    return lora_of(GuidedDistillation(guidance=GUIDANCE, sample_with=sampler), steps=1000)


def sd15_lcm_lora() -> Run:
    """LCM-LoRA of Stable Diffusion 1.5 (arXiv:2311.05556).

    As released: DDIM over 50 intervals of the table, guidance drawn from 6 … 16 (w of 5 … 15) and
    never told to the student, which learns their average and is its own target.
    """
    return lora_of(
        LatentConsistency(guidance=GuidanceRange(6.0, 16.0), target_decay=0.0), steps=1000
    )


def sd15_mbcd_lora() -> Run:
    """Multi-boundary consistency distillation of Stable Diffusion 1.5, guided at 7.5, in 4 segments
    (arXiv:2406.14539).

    Sampled by 4 steps of DDIM as diffusers has it with trailing times, without new noise.
    """
    return lora_of(MultiBoundary(segments=4, bins=BINS, times=GRID, guidance=GUIDANCE))


def sd15_dmd2_lora() -> Run:
    """DMD2 of Stable Diffusion 1.5 in 4 steps: student and fake denoiser are two LoRAs on the
    teacher (arXiv:2405.14867).

    Weights, guidance 1.75 and 10 updates of the fake denoiser as published for this model; steps,
    alpha and rate as for the published LoRA of a larger one. It is known to diverge in fp16 where
    weights are in fp16: here those that train are not.
    """
    return lora_of(
        DMD2(
            fake_steps=10,
            steps=4,
            gan=1e-3,
            gan_fake=1e-2,
            guidance=GuidanceRange(1.75, 1.75),
            sample_times=STEPS,
        ),
        steps=4000,
        alpha=8.0,
        lr=5e-5,
        clip=10.0,
    )
