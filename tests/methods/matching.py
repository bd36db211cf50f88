"""What the tests of distribution matching share."""

import torch
from tests.diffusion.cases import every
from tests.stand_ins import Exact, denoising
from torch import nn

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.process import VarianceExploding, VariancePreserving, VariancePreservingTable
from fewstep.learning.batch import Batch
from fewstep.learning.method import Clock
from fewstep.methods.dmd2 import DMD2

VE = VarianceExploding()
CLOCK = Clock(0, 100, 64)
MATCHING = {"gan": 0.0, "gan_fake": 0.0}
THREE = every("process", {"ve": VE, "vp": VariancePreserving(), "table": VariancePreservingTable()})


def batch(rows=16, shape=(4,), seed=0, x0=None):
    return Batch(Cond(), Draws(seed, range(rows)), shape, x0)


def functions(student, fake, teacher, process=VE):
    """Networks of the method that are any functions of (x_t, t)."""
    return DMD2.Nets(
        Exact(process, student),
        denoising(process, fake),
        nn.Identity(),
        denoising(process, teacher),
    )


def leaf_of(rows=16, pixels=4, dtype=torch.float64):
    return torch.randn(
        rows, pixels, generator=torch.Generator().manual_seed(4), dtype=dtype
    ).requires_grad_()
