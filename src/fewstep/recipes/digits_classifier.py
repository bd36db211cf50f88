"""The shipped judge of digits: features for distances, and the class of every sample.

Made by `fewstep train digits_classifier`, then `python tools/ship.py runs/digits_classifier`: 34 s
on one core, seed 0, 2026-11-21. All 382 held-out images are right. Held-out images are at a Fréchet
distance of 33.2 from training images.
"""

from fewstep.data.digits import Digits
from fewstep.learning.schedules import Cosine
from fewstep.metrics.classifier import Classification
from fewstep.models.classifier import FreshClassifier
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """Cross entropy on 80 % of the digits."""
    return Run(
        data=Digits(),
        method=Classification(),
        teacher=FreshClassifier(),
        trainer=TrainerConfig(
            steps=3000,
            optimizer=AdamW(lr=2e-3, weight_decay=0.02),
            schedule=Cosine(warmup=100),
            ema=(0.99,),
            health_every=250,
        ),
    )
