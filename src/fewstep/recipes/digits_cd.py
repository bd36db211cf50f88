"""The demo: the shipped digits teacher becomes a student of 1 to 4 evaluations."""

from fewstep.data.digits import Digits
from fewstep.diffusion.solvers import Heun
from fewstep.learning.schedules import Cosine
from fewstep.methods.easy_consistency import EasyConsistency
from fewstep.models.source import Saved
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """Easy consistency with the teacher's step."""
    return Run(
        data=Digits(),
        method=EasyConsistency(solver=Heun()),
        teacher=Saved("digits_teacher"),
        trainer=TrainerConfig(
            steps=1000, optimizer=AdamW(lr=5e-4), schedule=Cosine(warmup=50), ema=(0.98,), save_every=250
        ),
    )
