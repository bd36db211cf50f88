"""Consistency training on nine groups of animals of an ImageNet-1k folder, without a teacher.

python examples/imagenet9.py imagenet/train --size 64 --steps 200000
"""

import argparse

from fewstep import Run, distil
from fewstep.data.imagenet9 import Imagenet9
from fewstep.diffusion.times import Explicit
from fewstep.methods.consistency_training import ConsistencyTraining
from fewstep.models.source import Fresh
from fewstep.models.unet import UNet
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import RAdam

parser = argparse.ArgumentParser()
parser.add_argument("path", help="a folder with n02085620 and so on")
parser.add_argument("--size", type=int, default=64, help="of the images, up to 224")
parser.add_argument("--channels", type=int, default=128, help="of the network")
parser.add_argument("--steps", type=int, default=200_000)
parser.add_argument("--batch", type=int, default=256)
parser.add_argument("--out", default="runs/imagenet9_example")
options = parser.parse_args()

network = UNet(options.channels, multipliers=(1, 2, 2, 4), blocks=2, attention=(8,), dropout=0.1)
run = Run(
    data=Imagenet9(path=options.path, size=options.size, flip=True),
    method=ConsistencyTraining(sample_times=Explicit(between=((2.0,), (40.0, 20.0, 10.0, 5.0)))),
    teacher=Fresh(network=network),
    trainer=TrainerConfig(
        steps=options.steps,
        batch=options.batch,
        optimizer=RAdam(lr=1e-4),
        sample_every=1000,
        sample_steps=(2, 5),
    ),
)
distil(run, options.out, progress=True)
print(f"grids: {options.out}/samples")
