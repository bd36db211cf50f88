"""Distribution matching: the adversarial terms and the head."""

import math

import pytest
import torch
import torch.nn.functional as F
from tests.diffusion.cases import close
from tests.methods.matching import CLOCK, MATCHING, VE, batch, functions, leaf_of
from tests.stand_ins import denoising
from torch import nn

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.densities import Along
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.parameterization import (
    SamplePrediction,
)
from fewstep.diffusion.times import Karras
from fewstep.learning.batch import Batch
from fewstep.methods.dmd2 import DMD2
from fewstep.models.heads import Head


class Looker(nn.Module):
    """A network whose one tap is its input, as a map of one channel."""

    inputs = ()

    def __init__(self):
        super().__init__()
        self.tap, self.taps = nn.Identity(), {"tap": 1}

    def forward(self, x, t, cond, s=None):
        return 0.5 * self.tap(x)


class Judge(nn.Module):
    """Logits k·mean(features) + bias; remembers them."""

    def __init__(self, k=0.0, bias=0.0):
        super().__init__()
        self.k, self.bias, self.seen = (
            nn.Parameter(torch.tensor(k)),
            nn.Parameter(torch.tensor(bias)),
            [],
        )

    def forward(self, features):
        self.seen.append(features.detach())
        return self.k * features.flatten(1).mean(1) + self.bias


def adversaries(judge, student=lambda x, t: x / 80):
    fake = Denoiser(Looker(), VE, SamplePrediction())
    return DMD2.Nets(denoising(VE, student), fake, judge, denoising(VE, lambda x, t: 0.4 * x))


def test_an_undecided_discriminator_costs_ln_2_a_look():
    """L_G = gan ln 2, L_D = gan_fake 2 ln 2 (invariant 7)."""
    method = DMD2(gan=0.3, gan_fake=0.7)
    made = batch(16, (4,), x0=torch.randn(16, 4))
    nets = adversaries(Judge())
    close(
        method.fake_loss(nets, made, CLOCK).terms["discriminator"],
        torch.full((16,), 0.7 * 2 * math.log(2)),
    )
    made = batch(16, (4,), x0=torch.randn(16, 4))
    close(
        method.loss(nets, made, CLOCK).terms["adversarial"],
        torch.full((16,), 0.3 * math.log(2)),
        rtol=1e-6,
    )


def test_the_adversarial_terms_by_value():
    """softplus(D(made)) + softplus(-D(real)) for fake and head, softplus(-D(made)) for the student,
    on noised images.

    The two looks of a row are at one time of all 1000, and each has its own noise.
    """
    method, judge = DMD2(gan=0.3, gan_fake=0.7), Judge(0.6, -0.2)
    nets = adversaries(judge, student=lambda x, t: torch.full_like(x, -0.75))
    x0 = torch.full((4000, 16), 0.75)
    losses = method.fake_loss(nets, batch(4000, (16,), x0=x0), CLOCK)
    real_seen, made_seen = judge.seen
    logits = [0.6 * seen.mean(1) - 0.2 for seen in (real_seen, made_seen)]
    close(
        losses.terms["discriminator"],
        0.7 * (F.softplus(logits[1]) + F.softplus(-logits[0])),
        rtol=1e-5,
    )
    ratio = (
        (real_seen - 0.75).std(1) / (made_seen + 0.75).std(1)
    ).log()  # of one time: 16 pixels each
    assert ratio.abs().max() < 2.5
    assert (
        abs(torch.corrcoef(torch.stack([(real_seen - 0.75)[:, 0], (made_seen + 0.75)[:, 0]]))[0, 1])
        < 0.1
    )
    assert (real_seen - 0.75).std(1).min() < 0.003
    assert (real_seen - 0.75).std(1).max() > 60
    judge.seen.clear()
    losses = method.loss(nets, batch(4000, (16,), x0=x0), CLOCK)
    (made_seen,) = judge.seen
    close(
        losses.terms["adversarial"], 0.3 * F.softplus(-(0.6 * made_seen.mean(1) - 0.2)), rtol=1e-5
    )


class Witness(Looker):
    """A network that remembers the times and labels that it was asked with."""

    inputs = ("label",)

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, x, t, cond, s=None):
        self.asked.append((t, cond["label"]))
        return super().forward(x, t, cond, s)


def test_when_and_with_which_condition_the_networks_are_asked():
    """Each with the labels of the batch, also in backward simulation; the fake's and all
    adversarial looks are at its own density, of which one time is left here.
    """
    method = DMD2(steps=3, density=Along(low=0.5, high=0.5), fake_density=Along(low=0.9, high=0.9))
    nets = DMD2.Nets(
        *(Denoiser(Witness(), VE, SamplePrediction()) for _ in range(2)),
        Judge(),
        Denoiser(Witness(), VE, SamplePrediction()),
    )
    labels = torch.arange(1, 17)
    cond = Cond({"label": labels}, {"label": 0 * labels})
    seed = next(seed for seed in range(20) if Draws(seed, range(1)).choice(3) == 2)
    rising = Karras(end="t_min")(VE, 999).flip(0)
    simulated = Karras(rho=20.0, end="t_min")(VE, 3)[:3].tolist()
    matching, adversarial = rising[500].item(), rising[900].item()
    for update, fake, teacher in (
        (method.fake_loss, [adversarial] * 3, []),
        (method.loss, [matching, adversarial], [matching]),
    ):
        for net in (nets.student, nets.fake, nets.teacher):
            net.network.asked.clear()
        update(nets, Batch(cond, Draws(seed, range(16)), (4,), torch.randn(16, 4)), CLOCK)
        for net, times in ((nets.student, simulated), (nets.fake, fake), (nets.teacher, teacher)):
            assert [t[0].item() for t, _ in net.network.asked] == pytest.approx(times, rel=1e-9)
            assert all(
                t.eq(t[0]).all() and torch.equal(label, labels) for t, label in net.network.asked
            )


def test_the_student_is_pushed_to_where_logits_rise_and_the_head_apart():
    method = DMD2(gan=1.0, gan_fake=1.0)
    leaf = leaf_of(dtype=torch.float32)
    nets = adversaries(Judge(2.0), student=lambda x, t: leaf * 1)
    losses = method.loss(nets, batch(16, (4,), x0=torch.randn(16, 4)), CLOCK)
    (grad,) = torch.autograd.grad(losses.terms["adversarial"].sum(), leaf)
    assert (grad < 0).all()
    judge = Judge(0.0)
    nets = adversaries(judge, student=lambda x, t: torch.full_like(x, -1.0))
    fake_loss = method.fake_loss(nets, batch(4000, (64,), x0=torch.ones(4000, 64)), CLOCK)
    fake_loss.terms["discriminator"].mean().backward()
    assert judge.k.grad < 0  # a larger k tells data at 1 from samples at -1
    assert judge.bias.grad == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", ["fake_loss", "loss"])
@pytest.mark.parametrize("steps", [1, 3])
def test_without_adversarial_terms_no_image_is_read(loss, steps):
    assert DMD2(**MATCHING).needs == set()
    assert DMD2().needs == {"x0"}
    nets = functions(
        lambda x, t: x / (1 + t[:, None]).to(x), lambda x, t: 0.5 * x, lambda x, t: 0.4 * x
    )
    method = DMD2(**MATCHING, steps=steps)
    found = [
        getattr(method, loss)(nets, batch(16, (4,), x0=x0), CLOCK).terms
        for x0 in (None, torch.randn(16, 4), torch.full((16, 4), math.nan))
    ]
    for terms in found[1:]:
        assert terms.keys() == found[0].keys()
        assert all(torch.equal(terms[key], found[0][key]) for key in terms)
    with pytest.raises(AssertionError, match="x0"):
        DMD2().fake_loss(adversaries(Judge()), batch(16, (4,)), CLOCK)


@pytest.mark.parametrize(
    "shape", [(2, 6, 4, 5), (2, 12, 6), (1, 6, 1, 1)], ids=["map", "tokens", "one place"]
)
def test_the_head_by_its_definition(shape):
    """Convolution of each place with its neighbours, norm over groups, SiLU, one number a place,
    their mean.
    """
    torch.manual_seed(3)
    channels = shape[2] if len(shape) == 3 else shape[1]
    head, features = Head(channels, width=16, groups=4), torch.randn(shape)
    found = head(features)
    head, features = head.double(), features.double()
    maps = features.transpose(1, 2)[:, :, None] if len(shape) == 3 else features  # tokens are a row
    conv, norm, _, last = head.body
    rows, columns = maps.shape[2:]
    padded = F.pad(maps, (1, 1, 1, 1))
    hidden = torch.zeros(len(maps), 16, rows, columns, dtype=torch.float64) + conv.bias.view(
        1, -1, 1, 1
    )
    for i in range(3):
        for j in range(3):
            shifted = padded[:, :, i : i + rows, j : j + columns]
            hidden = hidden + torch.einsum("oc,bchw->bohw", conv.weight[:, :, i, j], shifted)
    groups = hidden.reshape(len(maps), 4, -1)
    centred = groups - groups.mean(2, keepdim=True)
    groups = centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()
    hidden = groups.view_as(hidden) * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    hidden = hidden * torch.sigmoid(hidden)
    places = torch.einsum("c,bchw->bhw", last.weight[0, :, 0, 0], hidden) + last.bias
    assert found.shape == (shape[0],)
    close(found, places.flatten(1).mean(1), rtol=1e-5, atol=1e-6)


def test_the_heads_logit_of_a_row_is_its_own():
    head, features = Head(6), torch.randn(5, 6, 4, 4)
    order = torch.tensor([3, 1, 4, 0, 2])
    close(head(features[order]), head(features)[order], rtol=1e-5, atol=1e-6)
    close(head(features[1:2]), head(features)[1:2], rtol=1e-5, atol=1e-6)
    assert head(features.half()).dtype == torch.float32
