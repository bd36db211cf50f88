"""Recipes of drawn shapes with captions (32×32): text to image in the small."""

from fewstep.data.shapes import Shapes
from fewstep.learning.schedules import Cosine
from fewstep.metrics.classifier import Classification
from fewstep.models.classifier import ClassifierNetwork, FreshClassifier
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def shapes_classifier() -> Run:
    """The shipped features of drawn shapes, in which distances between sets of them are measured.

    Cross entropy over all 324 objects (size, colour, shape and place). Made by `fewstep train
    shapes_classifier`, then `python tools/ship.py runs/shapes_classifier`: 4 minutes on one core,
    seed 0, 2026-11-28. All 4,072 held-out pictures are right. 2,000 of them are at a Fréchet
    distance of 17.5 from training images, with the contours blurred over a pixel at 30.7. Pictures
    of two objects, which it never saw, are told apart too: 25.8, blurred 46.9, and those of a row
    without those of a column 298.
    """
    return Run(
        data=Shapes(),
        method=Classification(),
        teacher=FreshClassifier(ClassifierNetwork(channels=24)),
        trainer=TrainerConfig(
            steps=1800,
            optimizer=AdamW(lr=3e-3, weight_decay=0.02),
            schedule=Cosine(warmup=100),
            ema=(0.99,),
            health_every=250,
        ),
    )
