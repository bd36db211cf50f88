"""A judge of CIFAR-10: features for distances, and the class of every sample."""

from fewstep.data.cifar import Cifar
from fewstep.learning.schedules import Cosine
from fewstep.metrics.classifier import Classification
from fewstep.models.classifier import ClassifierNetwork, FreshClassifier
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """Cross entropy on 80 % of the images of data.path."""
    return Run(
        data=Cifar(flip=True),
        method=Classification(shift=3.0, noise=0.1),
        teacher=FreshClassifier(ClassifierNetwork(channels=48, features=128)),
        trainer=TrainerConfig(
            steps=1500,
            optimizer=AdamW(lr=2e-3, weight_decay=0.05),
            schedule=Cosine(warmup=100),
            ema=(0.995,),
        ),
    )
