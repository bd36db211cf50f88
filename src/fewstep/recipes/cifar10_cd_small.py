"""A few-step student of the recipe cifar10_teacher_small, by consistency distillation."""

from fewstep.data.cifar import Cifar
from fewstep.learning.schedules import Cosine
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.models.source import Saved
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """The teacher's Heun step on 18 intervals, 80 % of the images of data.path."""
    return Run(
        data=Cifar(flip=True),
        method=ConsistencyDistillation(),
        teacher=Saved("runs/cifar10_teacher_small"),
        trainer=TrainerConfig(
            steps=500,
            batch=32,
            optimizer=AdamW(lr=1e-3),
            schedule=Cosine(warmup=50),
            ema=(0.98,),
            precision="bf16",
            save_every=250,
        ),
    )
