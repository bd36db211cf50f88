"""A mean flow from the shipped digits teacher, for one evaluation."""

from fewstep.data.digits import Digits
from fewstep.learning.schedules import Cosine
from fewstep.methods.mean_flow import MeanFlow
from fewstep.models.source import Saved
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """The velocity is that of the teacher, which has less noise than the data; no dropout."""
    return Run(
        data=Digits(),
        method=MeanFlow(velocity="teacher"),
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
