"""A consistency trajectory model on digits: jumps to any time, learned with a denoising term."""

from fewstep.data.digits import Digits
from fewstep.learning.schedules import Cosine
from fewstep.methods.consistency_trajectory import ConsistencyTrajectory
from fewstep.models.source import Saved
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """From the shipped teacher, one to four of its Heun steps at a time, without dropout."""
    return Run(
        data=Digits(),
        method=ConsistencyTrajectory(),
        teacher=Saved("digits_teacher"),
        dropout=0.0,
        trainer=TrainerConfig(
            steps=400,
            optimizer=AdamW(lr=1e-3),
            schedule=Cosine(warmup=50),
            ema=(0.98,),
            save_every=250,
        ),
    )
