"""Guidance: linear in its scale, told to networks that read it, exact for Gaussians."""

import pytest
import torch
from tests.diffusion.cases import PROCESSES, close, every, f64, inner_times
from tests.oracles import Gaussian
from torch import nn

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.guidance import guided
from fewstep.diffusion.parameterization import Edm, SamplePrediction, Velocity
from fewstep.diffusion.process import VarianceExploding

VE = VarianceExploding()


class Labelled(nn.Module):
    """F = sin(x) + the row of its label; counts the rows that it was given."""

    inputs = ("label",)

    def __init__(self):
        super().__init__()
        self.rows = torch.tensor([[0.3, -1.0], [0.9, 0.4], [0.0, 0.1]])  # the last one means "any"
        self.batches = []

    def forward(self, x, t, cond, s=None):
        self.batches.append(len(x))
        return (
            torch.sin(x) + self.rows[cond["label"]].to(x) + (0 if s is None else s.to(x)[:, None])
        )


class Told(nn.Module):
    """Reads the scale itself."""

    inputs = ("label", "guidance")

    def forward(self, x, t, cond, s=None):
        self.batch, self.guidance = len(x), cond["guidance"]
        return x * cond["guidance"].to(x)[:, None]


LABELS = torch.tensor([0, 1, 1, 0])
COND = Cond({"label": LABELS}, {"label": torch.full((4,), 2)})


def sides(denoiser, x, t):
    return denoiser(x, t, COND), denoiser(x, t, COND.unconditional())


@every("process", PROCESSES)
@pytest.mark.parametrize("g", [0.0, 1.1, 3.5, -1.0])
def test_guidance_is_linear_in_its_scale(process, g):
    net, t = Labelled(), inner_times(process)[:4]
    denoiser, x = Denoiser(net, process, Velocity()), torch.randn(4, 2, dtype=torch.float64)
    with_label, without = sides(denoiser, x, t)
    net.batches.clear()
    close(
        guided(denoiser, g)(x, t, COND), without + g * (with_label - without), rtol=1e-9, atol=1e-12
    )
    assert net.batches == [8]  # one doubled batch


def test_guidance_one_is_the_conditional_side():
    denoiser, x, t = (
        Denoiser(Labelled(), VE, Edm()),
        torch.randn(4, 2, dtype=torch.float64),
        f64(0.1, 1.0, 5.0, 80.0),
    )
    close(guided(denoiser, 1.0)(x, t, COND), denoiser(x, t, COND), rtol=1e-12)
    assert torch.equal(guided(denoiser, 0.0)(x, t, COND), denoiser(x, t, COND.unconditional()))


def test_a_scale_per_sample_and_a_scale_of_the_time():
    denoiser, x, t = (
        Denoiser(Labelled(), VE, Edm()),
        torch.randn(4, 2, dtype=torch.float64),
        f64(0.1, 1.0, 5.0, 80.0),
    )
    with_label, without = sides(denoiser, x, t)
    scale = torch.tensor([0.5, 1.0, 2.0, 7.0])
    close(
        guided(denoiser, scale)(x, t, COND),
        without + scale[:, None] * (with_label - without),
        rtol=1e-9,
    )
    early = guided(denoiser, lambda t: torch.where(t > 2, 4.0, 1.0).to(t))(x, t, COND)
    close(early[:2], with_label[:2], rtol=1e-9)
    close(early[2:], (without + 4 * (with_label - without))[2:], rtol=1e-9)


def test_guidance_passes_the_target_time_on():
    denoiser, x, t = (
        Denoiser(Labelled(), VE, Edm()),
        torch.randn(4, 2, dtype=torch.float64),
        f64(0.1, 1.0, 5.0, 80.0),
    )
    s = t / 3
    with_label, without = denoiser(x, t, COND, s), denoiser(x, t, COND.unconditional(), s)
    close(guided(denoiser, 2.0)(x, t, COND, s), 2 * with_label - without, rtol=1e-9)


@pytest.mark.parametrize("scale", [3.0, torch.tensor([1.0, 2.0, 3.0, 4.0]), lambda t: 1 + t])
def test_a_network_that_reads_guidance_is_told_instead(scale):
    net, x, t = Told(), torch.randn(4, 2), f64(0.1, 1.0, 5.0, 80.0)
    denoiser = Denoiser(net, VE, SamplePrediction())
    expected = scale(t) if callable(scale) else torch.as_tensor(scale).expand(4)
    close(guided(denoiser, scale)(x, t, COND), x * expected[:, None].float(), rtol=1e-6)
    assert net.batch == 4
    close(net.guidance, expected, rtol=1e-6)


@every("process", PROCESSES)
def test_guided_gaussians_of_one_width_are_a_gaussian_further_out(process):
    """mean = null + g (cond - null) of the exact denoisers."""

    class Means(nn.Module):
        inputs = ("label",)

        def forward(self, x, t, cond, s=None):
            return torch.stack(
                [
                    Gaussian(process, (0.2, -0.1)[int(k)])(x[i : i + 1], t[i : i + 1])[0]
                    for i, k in enumerate(cond["label"])
                ]
            )

    t = inner_times(process)[:3]
    x = torch.randn(3, 2, dtype=torch.float64)
    cond = Cond(
        {"label": torch.zeros(3, dtype=torch.long)}, {"label": torch.ones(3, dtype=torch.long)}
    )
    x0 = guided(Denoiser(Means(), process, SamplePrediction()), 4.0)(x, t, cond)
    close(x0, Gaussian(process, -0.1 + 4 * 0.3)(x, t), rtol=1e-10)


def test_guidance_one_leaves_the_denoiser_as_it_is():
    plain = Denoiser(Labelled(), VE, SamplePrediction())
    assert guided(plain, 1.0) is plain
    told = Denoiser(Told(), VE, SamplePrediction())
    assert guided(told, 1.0) is not told
