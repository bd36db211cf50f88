"""Phased consistency on digits, with a discriminator on the teacher's features."""

from fewstep.data.digits import Digits
from fewstep.learning.schedules import Cosine
from fewstep.methods.phased_consistency import PhasedConsistency
from fewstep.models.source import Saved
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """Four phases of a grid of 20 first-order steps of the shipped teacher, without dropout."""
    return Run(
        data=Digits(),
        method=PhasedConsistency(bins=20),
        teacher=Saved("digits_teacher"),
        dropout=0.0,
        trainer=TrainerConfig(
            steps=300,
            optimizer=AdamW(lr=2e-4),
            schedule=Cosine(warmup=50),
            ema=(0.98,),
            save_every=250,
        ),
    )
