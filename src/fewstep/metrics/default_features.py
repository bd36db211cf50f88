"""The network in whose features images are compared where nobody names one."""

from __future__ import annotations

from fewstep.metrics.efflite0 import NEEDS, Efflite0, installed
from fewstep.metrics.features import ClassifierFeatures, Features

DIGITS = (8, 8)
"""The sides of the images that the shipped classifier knows."""


def features_for(shape: tuple[int, ...]) -> Features:
    """Those that images of this shape are compared in where nobody says: the shipped classifier
    for digits, else EfficientNet-Lite0. FileNotFoundError where its weights are not there.
    """
    if tuple(shape[1:]) == DIGITS:
        return ClassifierFeatures()
    if installed():
        return Efflite0()
    raise FileNotFoundError(
        f"no network is there to compare images of shape {'×'.join(map(str, shape))} in: {NEEDS}, "
        "or train a classifier on such images (recipe mnist_classifier shows how) and give it as "
        "--features"
    )
