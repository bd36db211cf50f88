"""A few-step student of the recipe cifar10_teacher in full size, by consistency distillation
(arXiv:2303.01469).

39 intervals, target decay 0.95, squared distance, fp16. The published 600,000 steps; most of the
way is made in the first 100,000.
"""

from fewstep.data.cifar import Cifar
from fewstep.learning.schedules import Constant
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.models.source import Saved
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import RAdam


def recipe() -> Run:
    """The teacher's Heun step, on all images of data.path."""
    return Run(
        data=Cifar(split="all", flip=True),
        method=ConsistencyDistillation(bins=39),
        teacher=Saved("runs/cifar10_teacher"),
        dropout=0.0,
        trainer=TrainerConfig(
            steps=600_000,
            batch=128,
            optimizer=RAdam(lr=8e-6),
            schedule=Constant(),
            ema=(0.9999, 0.999, 0.9999432),
            precision="fp16",
            save_every=5000,
            health_every=1000,
        ),
    )
