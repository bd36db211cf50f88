"""A few-step student of the recipe cifar10_teacher in full size, by easy consistency tuning
(arXiv:2406.14548).
"""

from fewstep.data.cifar import Cifar
from fewstep.learning.schedules import Constant
from fewstep.methods.easy_consistency import EasyConsistency
from fewstep.models.source import Saved
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import RAdam


def recipe() -> Run:
    """The published batch and rate, dropout 0.2, on all images of data.path."""
    return Run(
        data=Cifar(split="all", flip=True),
        method=EasyConsistency(),
        teacher=Saved("runs/cifar10_teacher"),
        dropout=0.2,
        trainer=TrainerConfig(
            steps=100_000,
            batch=128,
            optimizer=RAdam(lr=1e-4),
            schedule=Constant(),
            ema=(0.9993, 0.9999),
            precision="bf16",
            save_every=5000,
            health_every=1000,
        ),
    )
