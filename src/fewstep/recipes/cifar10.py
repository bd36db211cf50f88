"""Recipes of CIFAR-10 (32×32): small ones for a laptop, and the published sizes for GPUs."""

from fewstep.data.cifar import Cifar
from fewstep.learning.method import Method
from fewstep.learning.schedules import Constant, Cosine
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.methods.diffusion import Diffusion
from fewstep.methods.easy_consistency import EasyConsistency
from fewstep.metrics.classifier import Classification
from fewstep.models.classifier import ClassifierNetwork, FreshClassifier
from fewstep.models.source import Fresh, Saved
from fewstep.models.unet import UNet
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW, RAdam


def cifar10_classifier() -> Run:
    """A judge of CIFAR-10: features for distances, and the class of every sample.

    Cross entropy on 80 % of the images of data.path.
    """
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


def cifar10_teacher() -> Run:
    """A class-conditional EDM teacher of CIFAR-10 in full size: openai's 32×32 U-Net of 42,737,411
    parameters.

    EDM training on all images of data.path. For GPUs: `torchrun --nproc-per-node 8
    .venv/bin/fewstep train cifar10_teacher data.path=DIR`. The 200 million images of EDM
    (arXiv:2206.00364) would be 780,000 steps.
    """
    return Run(
        data=Cifar(split="all", flip=True),
        method=Diffusion(label_dropout=0.0),
        teacher=Fresh(network=UNet(), null=False),
        trainer=TrainerConfig(
            steps=400_000,
            batch=256,
            optimizer=RAdam(lr=1e-4),
            schedule=Constant(warmup=1000),
            ema=(0.9999, 0.999, 0.9999432),
            precision="bf16",
            save_every=5000,
            health_every=1000,
        ),
    )


def cifar10_cd() -> Run:
    """A few-step student of the recipe cifar10_teacher in full size, by consistency distillation
    (arXiv:2303.01469).

    The teacher's Heun step on all images of data.path, 39 intervals, target decay 0.95, squared
    distance, fp16. The published 600,000 steps; most of the way is made in the first 100,000.
    """
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


def cifar10_ect() -> Run:
    """A few-step student of the recipe cifar10_teacher in full size, by easy consistency tuning
    (arXiv:2406.14548).

    The published batch and rate, dropout 0.2, on all images of data.path.
    """
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


def cifar10_teacher_small() -> Run:
    """A class-conditional EDM teacher of CIFAR-10 for a laptop: a U-Net of 1.4 M parameters, half
    an hour.

    EDM training on 80 % of the images of data.path.
    """
    network = UNet(
        channels=32, multipliers=(1, 2, 2), blocks=1, attention=(4,), head_channels=32, groups=16
    )
    return Run(
        data=Cifar(flip=True),
        method=Diffusion(),
        teacher=Fresh(network=network),
        trainer=small(steps=3000, lr=1e-3, warmup=100, ema=0.998),
    )


def small(*, steps: int, lr: float, warmup: int, ema: float) -> TrainerConfig:
    """The loop of the laptop's recipes."""
    return TrainerConfig(
        steps=steps,
        batch=32,
        optimizer=AdamW(lr=lr),
        schedule=Cosine(warmup=warmup),
        ema=(ema,),
        precision="bf16",
        save_every=250,
    )


def small_student_of(method: Method, *, steps: int, lr: float) -> Run:
    """A student of cifar10_teacher_small, on 80 % of the images of data.path."""
    return Run(
        data=Cifar(flip=True),
        method=method,
        teacher=Saved("runs/cifar10_teacher_small"),
        trainer=small(steps=steps, lr=lr, warmup=50, ema=0.98),
    )


def cifar10_cd_small() -> Run:
    """A few-step student of the recipe cifar10_teacher_small, by consistency distillation.

    The teacher's Heun step on 18 intervals.
    """
    return small_student_of(ConsistencyDistillation(), steps=500, lr=1e-3)


def cifar10_ect_small() -> Run:
    """A few-step student of the recipe cifar10_teacher_small, by easy consistency tuning on the
    data.
    """
    return small_student_of(EasyConsistency(), steps=600, lr=5e-4)
