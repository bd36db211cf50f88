"""A class-conditional EDM teacher of MNIST-like digits (28×28), trained in 20 minutes on 2 cores.

Measured on MNIST's 10,000 test images (80 % to train on) by `fewstep evaluate`: 2,000 samples, seed
0, features of mnist_classifier, held-out images at 0.81. Fréchet distance 5.11 with Heun and 35
evaluations (301 with 1), 89.1 % confirmed, diversity 100.8 %. 19 minutes on one thread, 2026-11-21.
"""

from fewstep.data.idx import Idx
from fewstep.learning.schedules import Cosine
from fewstep.methods.diffusion import Diffusion
from fewstep.models.source import Fresh
from fewstep.models.unet import UNet
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """EDM training on 80 % of the images of data.path."""
    network = UNet(
        channels=16, multipliers=(1, 2, 4), blocks=1, attention=(4,), head_channels=16, groups=8
    )
    return Run(
        data=Idx(),
        method=Diffusion(),
        teacher=Fresh(network=network),
        trainer=TrainerConfig(
            steps=2000,
            batch=64,
            optimizer=AdamW(lr=1e-3),
            schedule=Cosine(warmup=100),
            ema=(0.998,),
            save_every=250,
        ),
    )
