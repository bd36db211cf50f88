"""A class-conditional EDM teacher of CIFAR-10 in full size: openai's 32×32 U-Net of 42,737,411
parameters.

For GPUs: `torchrun --nproc-per-node 8 .venv/bin/fewstep train cifar10_teacher data.path=DIR`. The
200 million images of EDM (arXiv:2206.00364) would be 780,000 steps.
"""

from fewstep.data.cifar import Cifar
from fewstep.learning.schedules import Constant
from fewstep.methods.diffusion import Diffusion
from fewstep.models.source import Fresh
from fewstep.models.unet import UNet
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import RAdam


def recipe() -> Run:
    """EDM training on all images of data.path."""
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
