"""A few-step student of the recipe mnist_teacher."""

from fewstep.data.idx import Idx
from fewstep.diffusion.solvers import Heun
from fewstep.learning.schedules import Cosine
from fewstep.methods.easy_consistency import EasyConsistency
from fewstep.models.source import Saved
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """Easy consistency with the teacher's step, on 80 % of the images of data.path."""
    return Run(
        data=Idx(),
        method=EasyConsistency(solver=Heun()),
        teacher=Saved("runs/mnist_teacher"),
        trainer=TrainerConfig(
            steps=1000, batch=64, optimizer=AdamW(lr=5e-4), schedule=Cosine(warmup=50), ema=(0.99,), save_every=250
        ),
    )
