"""Invertible distillation on digits: a student down and one up, which encodes images."""

from fewstep.data.digits import Digits
from fewstep.learning.schedules import Cosine
from fewstep.methods.invertible_consistency import InvertibleConsistency
from fewstep.methods.multi_boundary import MultiBoundary
from fewstep.models.source import Saved
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """Four segments of a grid of 20 steps of the shipped teacher in each direction, without
    dropout.
    """
    return Run(
        data=Digits(),
        method=InvertibleConsistency(reverse=MultiBoundary(bins=20)),
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
