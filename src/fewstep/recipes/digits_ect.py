"""Easy consistency tuning of the shipped digits teacher (arXiv:2406.14548)."""

from fewstep.data.digits import Digits
from fewstep.learning.schedules import Cosine
from fewstep.methods.easy_consistency import EasyConsistency
from fewstep.models.source import Saved
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """From the shipped teacher, all eight stages in a short run."""
    return Run(
        data=Digits(),
        method=EasyConsistency(),
        teacher=Saved("digits_teacher"),
        dropout=0.0,
        trainer=TrainerConfig(
            steps=500,
            optimizer=AdamW(lr=5e-4),
            schedule=Cosine(warmup=20),
            ema=(0.98,),
            save_every=250,
        ),
    )
