"""A judge of MNIST-like digits (28×28), for the other recipes of this family.

Measured on MNIST's 10,000 test images (80 % to train on): 98.8 % of the held-out ones right; 134 s
on a busy machine.
"""

from fewstep.data.idx import Idx
from fewstep.learning.schedules import Cosine
from fewstep.metrics.classifier import Classification
from fewstep.models.classifier import FreshClassifier
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """Cross entropy on 80 % of the images of data.path."""
    return Run(
        data=Idx(),
        method=Classification(shift=2.0),
        teacher=FreshClassifier(),
        trainer=TrainerConfig(
            steps=1500,
            optimizer=AdamW(lr=2e-3, weight_decay=0.02),
            schedule=Cosine(warmup=100),
            ema=(0.99,),
        ),
    )
