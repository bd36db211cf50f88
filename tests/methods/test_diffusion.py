"""Teacher training against closed forms."""

import pytest
import torch
from tests.oracles import Gaussian, batch_of
from tests.stand_ins import Output

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.parameterization import Edm, Epsilon, Flow, SamplePrediction, Velocity
from fewstep.diffusion.process import Process, RectifiedFlow, VarianceExploding, VariancePreserving
from fewstep.diffusion.samplers import Ode
from fewstep.diffusion.solvers import Euler
from fewstep.diffusion.times import Trailing
from fewstep.learning.method import Clock
from fewstep.methods.diffusion import Diffusion

CLOCK = Clock(0, 100, 64)


def test_a_silent_edm_network_has_loss_one_on_data_of_its_own_spread():
    """With F = 0 and data N(0, sigma_data²) the expected weighted loss is 1 at every noise level
    (EDM, table 1).
    """
    denoiser = Denoiser(Output(lambda x, t: torch.zeros_like(x)), VarianceExploding(), Edm(0.5))
    x0 = 0.5 * torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0))
    loss = Diffusion().loss(Diffusion.Nets(denoiser), batch_of(x0), CLOCK).terms["denoising"]
    assert loss.mean().item() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("parameterization", "process", "target"),
    [
        (Epsilon(), VariancePreserving(), lambda p, t, x0, e: e),
        (
            Velocity(),
            VariancePreserving(),
            lambda p, t, x0, e: p.alpha(t)[:, None] * e - p.sigma(t)[:, None] * x0,
        ),
        (Flow(), RectifiedFlow(), lambda p, t, x0, e: e - x0),
        (SamplePrediction(), RectifiedFlow(), lambda p, t, x0, e: x0),
    ],
)
def test_the_loss_is_the_squared_error_of_what_the_network_predicts(
    parameterization, process, target
):
    """One weight, 1/out², is the plain regression of noise, v, flow and sample alike."""
    x0 = torch.randn(256, 4, dtype=torch.float64)
    batch, again = batch_of(x0), batch_of(x0)
    noise = again.noise().double()
    t = Diffusion().density(process, again.draws)
    guess = 0.3
    denoiser = Denoiser(Output(lambda x, t: torch.full_like(x, guess)), process, parameterization)
    loss = Diffusion().loss(Diffusion.Nets(denoiser), batch, CLOCK).terms["denoising"]
    expected = (target(process, t, x0, noise) - guess).square().mean(1)
    assert torch.allclose(loss, expected, rtol=1e-6, atol=1e-9)


def test_the_ideal_denoiser_is_stationary():
    """The gradient with respect to a scale of the exact denoiser vanishes in expectation, and not
    for a wrong one.
    """
    process = VarianceExploding()
    ideal = Gaussian(process, std=0.5)
    x0 = 0.5 * torch.randn(100_000, 1, generator=torch.Generator().manual_seed(0)).double()
    gradients = {}
    for start in (1.0, 1.1):
        scale = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        denoiser = Denoiser(
            Output(lambda x, t, a=scale: a * ideal(x, t)), process, SamplePrediction()
        )
        loss = Diffusion().loss(Diffusion.Nets(denoiser), batch_of(x0), CLOCK).terms["denoising"]
        (gradients[start],) = torch.autograd.grad(loss.mean(), scale)
    assert abs(gradients[1.0]) < 0.02 * abs(gradients[1.1])


@pytest.mark.parametrize(
    "process", [cls() for cls in Process.kinds().values()], ids=lambda p: type(p).__name__
)
def test_the_sampler_of_a_trained_teacher_serves_every_process(process):
    """With the ideal denoiser of N(mean, std²) its samples have that mean and spread, whatever the
    process.
    """
    noise = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sampler = Diffusion().sampler(CLOCK).with_steps(100)
    x0 = sampler(Gaussian(process, 0.3, 0.5), process, noise, Cond(), Draws(0, range(4000)))
    assert x0.isfinite().all()
    assert x0.mean().item() == pytest.approx(0.3, abs=0.04)
    assert x0.std().item() == pytest.approx(0.5, rel=0.05)


def test_it_says_how_the_model_is_sampled():
    method = Diffusion(solver_steps=50, solver=Euler(), times=Trailing(), default_guidance=3.0)
    assert method.sampler(CLOCK) == Ode(50, Trailing(), Euler())
    assert method.student_guidance() == Guidance("doubled", 1.0, 8.0, 3.0)
    before = Guidance("doubled", 1.0, 15.0, 7.5)
    assert method.student_guidance(before).default == 3.0
    assert Diffusion().student_guidance(before) == before, "nobody asked for another"
    with pytest.raises(ValueError, match="label_dropout"):
        Diffusion(label_dropout=0.0, default_guidance=3.0)
