"""Trajectory consistency distillation on digits: jumps to any time, told to the student."""

from fewstep.data.digits import Digits
from fewstep.learning.schedules import Cosine
from fewstep.methods.trajectory_consistency import TrajectoryConsistency
from fewstep.models.source import Saved
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """A grid of 20 first-order steps of the shipped teacher, without dropout."""
    return Run(
        data=Digits(),
        method=TrajectoryConsistency(bins=20, told_end=True),
        teacher=Saved("digits_teacher"),
        dropout=0.0,
        trainer=TrainerConfig(
            steps=500,
            optimizer=AdamW(lr=5e-4),
            schedule=Cosine(warmup=50),
            ema=(0.98,),
            save_every=250,
        ),
    )
