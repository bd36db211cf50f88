"""Multi-boundary distillation on digits: four deterministic steps."""

from fewstep.data.digits import Digits
from fewstep.learning.schedules import Cosine
from fewstep.methods.multi_boundary import MultiBoundary
from fewstep.models.source import Saved
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """Four segments of a grid of 20 first-order steps of the shipped teacher, without dropout."""
    return Run(
        data=Digits(),
        method=MultiBoundary(bins=20),
        teacher=Saved("digits_teacher"),
        dropout=0.0,
        trainer=TrainerConfig(
            steps=400,
            optimizer=AdamW(lr=2e-4),
            schedule=Cosine(warmup=50),
            ema=(0.98,),
            save_every=250,
        ),
    )
