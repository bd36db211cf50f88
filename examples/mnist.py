"""Consistency training on MNIST in Python, without a teacher: the recipe mnist_ct in the open.

python examples/mnist.py mnist/ --steps 1800
"""

import argparse

from fewstep import Run, distil
from fewstep.data.idx import Idx
from fewstep.diffusion.times import Explicit
from fewstep.methods.consistency_training import ConsistencyTraining
from fewstep.models.source import Fresh
from fewstep.models.unet import UNet
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW

parser = argparse.ArgumentParser()
parser.add_argument("path", help="a folder with MNIST's files")
parser.add_argument("--steps", type=int, default=1800)
parser.add_argument("--out", default="runs/mnist_example")
options = parser.parse_args()

network = UNet(16, multipliers=(1, 2, 4), blocks=1, attention=(4,), head_channels=16, groups=8)
# 2 steps at 80 and 2; 5 steps at 80, 40, 20, 10, 5
times = Explicit(between=((2.0,), (40.0, 20.0, 10.0, 5.0)))
run = Run(
    data=Idx(path=options.path),
    method=ConsistencyTraining(first=4, last=128, sample_times=times),
    teacher=Fresh(network=network),
    trainer=TrainerConfig(
        steps=options.steps,
        batch=64,
        optimizer=AdamW(lr=1e-3),
        ema=(0.995,),
        sample_every=100,
        sample_steps=(2, 5),
    ),
)
student = distil(run, options.out, progress=True).student
print(student.generate(labels=range(10), steps=2).shape, f"grids: {options.out}/samples")
