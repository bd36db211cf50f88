"""A few-step student of the recipe cifar10_teacher_small, by easy consistency tuning on the
data.
"""

from fewstep.data.cifar import Cifar
from fewstep.learning.schedules import Cosine
from fewstep.methods.easy_consistency import EasyConsistency
from fewstep.models.source import Saved
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """80 % of the images of data.path."""
    return Run(
        data=Cifar(flip=True),
        method=EasyConsistency(),
        teacher=Saved("runs/cifar10_teacher_small"),
        trainer=TrainerConfig(
            steps=600,
            batch=32,
            optimizer=AdamW(lr=5e-4),
            schedule=Cosine(warmup=50),
            ema=(0.98,),
            precision="bf16",
            save_every=250,
        ),
    )
