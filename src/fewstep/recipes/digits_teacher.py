"""The shipped teacher of scikit-learn's digits (8×8): a class-conditional EDM U-Net."""

from fewstep.data.digits import Digits
from fewstep.learning.schedules import Cosine
from fewstep.methods.diffusion import Diffusion
from fewstep.models.source import Fresh
from fewstep.models.unet import UNet
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """EDM training on 80 % of the digits."""
    network = UNet(channels=32, multipliers=(1, 2), blocks=1, attention=(2,), head_channels=32, groups=16, dropout=0.2)
    return Run(
        data=Digits(),
        method=Diffusion(),
        teacher=Fresh(network=network),
        trainer=TrainerConfig(
            steps=8000,
            batch=128,
            optimizer=AdamW(lr=1e-3, weight_decay=0.01),
            schedule=Cosine(warmup=200),
            ema=(0.999, 0.9995),
            save_every=1000,
            health_every=500,
        ),
    )
