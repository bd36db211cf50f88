"""Consistency training on MNIST-like digits (28×28) without a teacher, for 1 to 5 evaluations.

Measured on MNIST's 10,000 test images (80 % to train on) by `fewstep evaluate`: 2,000 samples, seed
0, features of mnist_classifier. Fréchet distance 21.1 at 1 evaluation, 6.7 at 2, 8.6 at 5;
confirmed 90.5, 93.5, 94.0 %; diversity 89.6, 94.6, 87.7 %. 24 minutes of one core, seed 0,
2026-11-21. (mnist_teacher, in 19: 5.1 with 35 evaluations, 89.1 %.)
"""

from fewstep.data.idx import Idx
from fewstep.diffusion.times import Explicit
from fewstep.learning.schedules import Cosine
from fewstep.methods.consistency_training import ConsistencyTraining
from fewstep.models.source import Fresh
from fewstep.models.unet import UNet
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """80 % of the images of data.path; grids at (80, 2) and (80, 40, 20, 10, 5) every 100 steps."""
    network = UNet(
        channels=16, multipliers=(1, 2, 4), blocks=1, attention=(4,), head_channels=16, groups=8
    )
    times = Explicit(between=((2.0,), (40.0, 20.0, 10.0, 5.0)))
    return Run(
        data=Idx(),
        method=ConsistencyTraining(first=4, last=128, sample_times=times),
        teacher=Fresh(network=network),
        trainer=TrainerConfig(
            steps=1800,
            batch=64,
            optimizer=AdamW(lr=1e-3),
            schedule=Cosine(warmup=50),
            ema=(0.995,),
            save_every=250,
            sample_every=100,
            sample_steps=(2, 5),
        ),
    )
