"""Continuous-time consistency distillation of the shipped digits teacher, for 1 or 2
evaluations.
"""

from fewstep.data.digits import Digits
from fewstep.learning.schedules import Cosine
from fewstep.methods.continuous_consistency import ContinuousConsistency
from fewstep.models.source import Saved
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """sCD without dropout; the teacher's fast sinusoids make large derivatives: a low rate and a
    long warm-up.
    """
    return Run(
        data=Digits(),
        method=ContinuousConsistency(warmup=0.5),
        teacher=Saved("digits_teacher"),
        dropout=0.0,
        trainer=TrainerConfig(
            steps=500,
            optimizer=AdamW(lr=3e-4),
            schedule=Cosine(warmup=20),
            ema=(0.98,),
            save_every=100,
        ),
    )
