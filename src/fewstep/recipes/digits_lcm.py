"""Latent consistency distillation on digits: the student reads the guidance scale."""

from fewstep.data.digits import Digits
from fewstep.learning.schedules import Cosine
from fewstep.methods.latent_consistency import LatentConsistency
from fewstep.models.source import Saved
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """From the shipped teacher, guided from 1 to 5 through its "no label", without dropout."""
    return Run(
        data=Digits(),
        method=LatentConsistency(),
        teacher=Saved("digits_teacher"),
        dropout=0.0,
        trainer=TrainerConfig(
            steps=300,
            optimizer=AdamW(lr=1e-3),
            schedule=Cosine(warmup=50),
            ema=(0.98,),
            save_every=250,
        ),
    )
