"""Progressive distillation of the shipped digits teacher, from 32 steps to 4.

Fréchet distance 5.70 at 4 evaluations (the teacher's best there is 39.2, with 35 evaluations 3.79),
99.7 % confirmed, diversity 88.0 %; 2,000 samples. 4 minutes on one thread, seed 0, 2026-11-21.
"""

from fewstep.data.digits import Digits
from fewstep.learning.schedules import Linear
from fewstep.methods.progressive import Progressive
from fewstep.models.source import Saved
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """Three rounds of equal length; the rate falls to 0 in each, the optimizer begins anew."""
    return Run(
        data=Digits(),
        method=Progressive(),
        teacher=Saved("digits_teacher"),
        dropout=0.0,
        trainer=TrainerConfig(
            steps=600,
            optimizer=AdamW(lr=5e-4),
            schedule=Linear(warmup=10),
            ema=(0.9,),
            save_every=100,
        ),
    )
