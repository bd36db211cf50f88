"""A transformer as the teacher of scikit-learn's digits (8×8): a class-conditional EDM DiT of 0.89
M parameters.

Squares of 2×2 pixels are its tokens: with one token per pixel a step takes four times as long.

Fréchet distance 6.31 with 35 evaluations (the U-Net of digits_teacher, of 0.83 M: 3.79), 97.9 %
confirmed, diversity 100.7 %; 2,000 samples. 35 minutes on one thread of a busy machine, seed 0,
2026-11-21.
"""

from fewstep.data.digits import Digits
from fewstep.learning.schedules import Cosine
from fewstep.methods.diffusion import Diffusion
from fewstep.models.dit import Dit
from fewstep.models.source import Fresh
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """EDM training on 80 % of the digits."""
    network = Dit(width=96, depth=5, heads=3, patch=2, dropout=0.1)
    return Run(
        data=Digits(),
        method=Diffusion(),
        teacher=Fresh(network=network),
        trainer=TrainerConfig(
            steps=4000,
            optimizer=AdamW(lr=3e-3, weight_decay=0.01),
            schedule=Cosine(warmup=200),
            ema=(0.999, 0.9995),
            save_every=1000,
            health_every=500,
        ),
    )
