"""Recipes of nine groups of animals of ImageNet-1k, for GPUs."""

from fewstep.data.imagenet9 import Imagenet9
from fewstep.diffusion.times import Explicit
from fewstep.learning.schedules import Constant
from fewstep.methods.consistency_training import ConsistencyTraining
from fewstep.models.source import Fresh
from fewstep.models.unet import UNet
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import RAdam


def imagenet9_ct() -> Run:
    """Consistency training without a teacher on nine groups of animals of ImageNet-1k, 64×64 (up to
    224×224).

    All pictures of data.path; grids at 2 and 5 steps while it trains. Needs a GPU to be trained to
    its end. `data.size=224 teacher.network.multipliers=[1,2,2,4,4,4]` for larger images.
    """
    network = UNet(channels=128, multipliers=(1, 2, 2, 4), blocks=2, attention=(4, 8), dropout=0.1)
    times = Explicit(between=((2.0,), (40.0, 20.0, 10.0, 5.0)))
    return Run(
        data=Imagenet9(flip=True),
        method=ConsistencyTraining(sample_times=times),
        teacher=Fresh(network=network),
        trainer=TrainerConfig(
            steps=200_000,
            batch=256,
            micro_batch=64,
            optimizer=RAdam(lr=1e-4),
            schedule=Constant(),
            ema=(0.9999,),
            precision="bf16",
            save_every=5000,
            health_every=1000,
            sample_every=1000,
            sample_steps=(2, 5),
        ),
    )
