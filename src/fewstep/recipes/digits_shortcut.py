"""Shortcut models from the shipped digits teacher, for 1 to 8 evaluations."""

from fewstep.data.digits import Digits
from fewstep.learning.schedules import Cosine
from fewstep.methods.shortcut import Shortcut
from fewstep.models.source import Saved
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """The velocity of the teacher on a grid of 32 intervals; half of the rows join jumps; no
    dropout.
    """
    return Run(
        data=Digits(),
        method=Shortcut(intervals=32, velocity="teacher", bootstrap=0.5, target_decay=0.95),
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
