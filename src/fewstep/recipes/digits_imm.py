"""Inductive moment matching on the digits, from the weights of the shipped teacher."""

from fewstep.data.digits import Digits
from fewstep.learning.schedules import Cosine
from fewstep.methods.moment_matching import MomentMatching
from fewstep.models.source import Saved
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """Groups of 16 rows, of which about two share a label, without dropout."""
    return Run(
        data=Digits(),
        method=MomentMatching(samples=16),
        teacher=Saved("digits_teacher"),
        dropout=0.0,
        trainer=TrainerConfig(
            steps=500,
            optimizer=AdamW(lr=5e-4),
            schedule=Cosine(warmup=20),
            ema=(0.98,),
            save_every=100,
        ),
    )
