"""A few-step student of the recipe mnist_teacher."""

from fewstep.data.idx import Idx
from fewstep.learning.schedules import Cosine
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.models.source import Saved
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """Consistency distillation on 80 % of the images of data.path."""
    return Run(
        data=Idx(),
        method=ConsistencyDistillation(),
        teacher=Saved("runs/mnist_teacher"),
        trainer=TrainerConfig(
            steps=1000, batch=64, optimizer=AdamW(lr=1e-3), schedule=Cosine(warmup=50), ema=(0.99,), save_every=250
        ),
    )
