"""Models whose networks get low-rank additions: a U-Net, a transformer, Stable Diffusion's U-Net,
and one from outside.
"""

from dataclasses import dataclass

import torch
from torch import nn

from fewstep.contracts.trial import TINY, digits
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.parameterization import Edm, Epsilon
from fewstep.diffusion.process import VarianceExploding, VariancePreservingTable
from fewstep.diffusion.samplers import Ode
from fewstep.models.bundle import DiffusionModel
from fewstep.models.dit import Dit
from fewstep.models.outside import OutsideNetwork
from fewstep.models.source import Fresh
from fewstep.models.space import Space
from tests.tiny_diffusion import TINY_UNET
from tests.toys import Captioned, ToyLatents, ToyWords

DIT = Dit(width=16, depth=2, heads=2)


class Plain(nn.Module):
    """Two convolutions, and between them one that works on each channel alone."""

    def __init__(self):
        super().__init__()
        self.into = nn.Conv2d(1, 8, 3, padding=1)
        self.each = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.down = nn.Conv2d(8, 8, 2, stride=2)
        self.out = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(8, 1, 1))

    def forward(self, x, t, label):
        level = (t + 0.1 * label)[:, None, None, None].to(x)
        return self.out(self.down(torch.tanh(self.each(self.into(x + 0.01 * level)))))


@dataclass(frozen=True)
class PlainNet(OutsideNetwork):
    def module(self, space):
        return Plain()


def stirred(model):
    """With weights everywhere, also in layers that begin at zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.denoiser.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def of_digits(network):
    return stirred(Fresh(network=network, process=VarianceExploding()).load(digits().space, 0))


def conditional():
    """On latents of 4 × 4 and the table of words."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        words, codec = ToyWords().build(), ToyLatents().build()
        network = TINY_UNET.build(Space((4, 4, 4), words.columns))
    denoiser = Denoiser(network, VariancePreservingTable(), Epsilon())
    guidance = Guidance("doubled", 1.0, 8.0, 1.0)
    return stirred(DiffusionModel(denoiser.eval(), codec, words, (4, 4, 4), Ode(), guidance))


def outside():
    made = of_digits(TINY)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PlainNet().build(made.denoiser.network.space)
    made.denoiser = Denoiser(network, VarianceExploding(), Edm()).eval()
    return made


MODELS = {
    "unet": lambda: of_digits(TINY),
    "dit": lambda: of_digits(DIT),
    "unet_2d_condition": conditional,
    "outside": outside,
}


def rows_of(model):
    """The data that a model is trained on."""
    if "caption" in model.conditioner.spec.reads:
        return Captioned(holds=("latent", "caption")).read()
    return digits()


def asked(model, num=4):
    """x, t and a condition."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(num, *model.shape, generator=generator)
    t = torch.linspace(0.3, 0.9, num, dtype=torch.float64) * model.denoiser.process.t_max
    if model.denoiser.process.discrete:
        t = t.round()
    if "caption" in model.conditioner.spec.reads:
        return x, t, model.conditioner({"caption": ["a one", "a two", "two", "a"][:num]})
    return x, t, model.conditioner({"label": torch.arange(num)})


@torch.no_grad()
def moved(denoiser, size=0.1):
    """The same, its own tensors moved at random."""
    generator = torch.Generator().manual_seed(5)
    for name, tensor in denoiser.network.named_parameters():
        if name in denoiser.network.own:
            tensor += size * torch.randn(tensor.shape, generator=generator).to(tensor)
    return denoiser
