"""Small models with weights everywhere, for tests of saving and of generating."""

import torch

from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.samplers import Ode
from fewstep.models.source import Fresh
from fewstep.models.space import image_space
from fewstep.models.unet import UNet

TINY = UNet(channels=8, multipliers=(1,), blocks=1, attention=(), head_channels=8, groups=4)
DOUBLED = Guidance("doubled", 1.0, 8.0, 1.0)


def stirred(network, seed):
    """Weights everywhere: a fresh network is zero in its last layers, and all its images would be
    alike.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += 0.03 * torch.randn(parameter.shape, generator=generator)
    return network.state_dict()


def made(null=True, classes=10):
    model = Fresh(network=TINY, null=null).load(image_space((1, 8, 8), classes), seed=0)
    model.sampler, model.guidance = Ode(3), DOUBLED if null and classes else Guidance()
    model.card = {"ema": 0.99, "data": {"fingerprint": "x"}}
    stirred(model.denoiser.network, 1)
    return model
