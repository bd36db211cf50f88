"""The demo's student, sharpened: distribution matching with a discriminator, for one evaluation."""

from fewstep.data.digits import Digits
from fewstep.learning.schedules import Cosine
from fewstep.methods.dmd2 import DMD2
from fewstep.models.source import Saved
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """From the shipped teacher; `start=runs/demo` begins with the demo's consistency student. fp32, no dropout."""
    return Run(
        data=Digits(),
        method=DMD2(),
        teacher=Saved("digits_teacher"),
        dropout=0.0,
        trainer=TrainerConfig(
            steps=300, batch=64, optimizer=AdamW(lr=2e-4), schedule=Cosine(warmup=10), ema=(0.98,), save_every=50
        ),
    )
