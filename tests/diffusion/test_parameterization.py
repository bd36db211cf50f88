"""Predictions: x0 = skip·x_t + out·F(inp·x_t, t), against the definitions and the numbers of the
papers.
"""

import pytest
import torch
from tests.diffusion.cases import PARAMETERIZATIONS, PROCESSES, close, every, f64, inner_times, rows

from fewstep.choice import replaced
from fewstep.diffusion.parameterization import (
    Boundary,
    CmBoundary,
    ConsistencyBoundary,
    Edm,
    Epsilon,
    Flow,
    LcmBoundary,
    SamplePrediction,
    Velocity,
)
from fewstep.diffusion.process import (
    RectifiedFlow,
    Trig,
    VarianceExploding,
    VariancePreservingTable,
)

VE, TABLE = VarianceExploding(), VariancePreservingTable()

# What each network is trained to say, of x0, the noise, alpha, sigma and their rates.
TARGETS = {
    "epsilon": lambda x0, noise, a, s, da, ds: noise,
    "velocity": lambda x0, noise, a, s, da, ds: (a * noise - s * x0) / torch.sqrt(a**2 + s**2),
    "flow": lambda x0, noise, a, s, da, ds: da * x0 + ds * noise,
    "sample_prediction": lambda x0, noise, a, s, da, ds: x0,
    # (x0 - skip·x_t)/out with the published coefficients at noise level u = s/a and x_t/a.
    "edm": lambda x0, noise, a, s, da, ds: (
        (x0 - 0.25 / ((s / a) ** 2 + 0.25) * (x0 + s / a * noise))
        / (s / a * 0.5 / torch.sqrt((s / a) ** 2 + 0.25))
    ),
}


def answer(parameterization, process, x_t, t, f):
    c = parameterization(process, t)
    shape = (-1, *(1,) * (x_t.ndim - 1))
    return c.skip.view(shape).to(x_t) * x_t + c.out.view(shape).to(x_t) * f


@every("process", PROCESSES)
@pytest.mark.parametrize("kind", TARGETS)
def test_the_exact_target_gives_x0(kind, process):
    t = inner_times(process)
    x0, noise = torch.randn(2, len(t), 3, dtype=torch.float64)
    numbers = [v[:, None] for v in (process.alpha(t), process.sigma(t), *process.rates(t))]
    target = TARGETS[kind](x0, noise, *numbers)
    close(
        answer(PARAMETERIZATIONS[kind], process, process.add_noise(x0, noise, t), t, target),
        x0,
        1e-9,
        1e-9,
    )


@every("process", PROCESSES)
@every("parameterization", PARAMETERIZATIONS)
def test_coefficients_are_finite_float64_and_read_the_network(parameterization, process):
    t = inner_times(process)
    for c in parameterization(process, t):
        assert c.dtype == torch.float64
        assert c.shape == t.shape
        assert torch.isfinite(c).all()
    assert (parameterization(process, t).out != 0).all()
    assert (parameterization(process, t).inp > 0).all()


# Published numbers


@pytest.mark.parametrize(
    ("parameterization", "t", "skip", "out"),
    [
        (Edm(0.5), 0.002, 0.9999840, 0.00199998),
        (Edm(0.5), 0.5, 0.5, 0.353553),
        (Edm(0.5), 80.0, 3.9061e-5, 0.499990),
        (CmBoundary(0.5), 0.002, 1.0, 0.0),
        (CmBoundary(0.5), 0.01, 0.99974407, 0.00799840),
        (CmBoundary(0.5), 0.5, 0.50200400, 0.35213917),
    ],
)
def test_preconditioning_at_published_noise_levels(parameterization, t, skip, out):
    c = parameterization(VE, f64(t))
    assert c.skip.item() == pytest.approx(skip, rel=2e-6)
    assert c.out.item() == pytest.approx(out, rel=2e-6, abs=5e-9)
    assert c.inp.item() == pytest.approx((t**2 + 0.25) ** -0.5, rel=1e-12)


@pytest.mark.parametrize(
    ("t", "skip"), [(0, 1.0), (1, 2.49377e-3), (19, 6.92516e-6), (999, 2.505e-9)]
)
def test_the_skip_of_latent_consistency_models(t, skip):
    # Of a network that predicts x0 the boundary's own two numbers are what is left.
    c = LcmBoundary(of=SamplePrediction())(TABLE, f64(t))
    assert c.skip.item() == pytest.approx(skip, rel=1e-5 if t < 999 else 2e-4)
    assert c.out.item() == pytest.approx((10 * t) / ((10 * t) ** 2 + 0.25) ** 0.5, abs=1e-12)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_the_lcm_boundary_is_that_of_diffusers(prediction):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.LCMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
    )
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 759, 499, 259]
    of = {"epsilon": Epsilon(), "sample": SamplePrediction(), "v_prediction": Velocity()}[
        prediction
    ]
    x_t, f = torch.randn(2, 1, 3, 4, 4)
    for t in scheduler.timesteps:
        theirs = scheduler.step(f, t, x_t, generator=torch.Generator().manual_seed(0)).denoised
        close(
            answer(LcmBoundary(of=of), TABLE, x_t, f64(float(t)), f), theirs, rtol=1e-4, atol=1e-5
        )


def test_the_consistency_boundary_of_openai_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.CMStochasticIterativeScheduler()
    t = f64(0.002, 0.01, 0.5, 3.0, 80.0)
    skip, out = scheduler.get_scalings_for_boundary_condition(t)
    c = CmBoundary()(VE, t)
    close(c.skip, skip)
    close(c.out, out)
    skip, out = scheduler.get_scalings(t)
    c = Edm()(VE, t)
    close(c.skip, skip)
    close(c.out, out)


# The weight 1/out²


@pytest.mark.parametrize(("sigma", "weight"), [(0.002, 250004.0), (0.5, 8.0), (80.0, 4.00016)])
def test_the_weight_of_edm(sigma, weight):
    assert Edm(0.5)(VE, f64(sigma)).out.item() ** -2 == pytest.approx(weight, rel=1e-6)


@every("process", PROCESSES)
def test_the_weights_of_the_field(process):
    t = inner_times(process)
    alpha, sigma, (alpha_rate, sigma_rate) = process.alpha(t), process.sigma(t), process.rates(t)
    snr = (alpha / sigma) ** 2
    close(Epsilon()(process, t).out ** -2, snr, rtol=1e-10)
    close(Velocity()(process, t).out ** -2, snr + 1, rtol=1e-10)
    close(SamplePrediction()(process, t).out ** -2, torch.ones_like(t))
    # In VE units u: EDM's lambda = (u² + sigma_data²)/(u·sigma_data)² = SNR + 1/sigma_data².
    close(Edm(0.5)(process, t).out ** -2, snr + 4, rtol=1e-10)
    # ||velocity error||² = (alpha' + sigma' d noise/d x0)²: x0 and noise move against each other at
    # fixed x_t.
    close(Flow()(process, t).out ** -2, (alpha_rate - sigma_rate * alpha / sigma) ** 2, rtol=1e-10)


@every("process", PROCESSES)
@every("parameterization", PARAMETERIZATIONS)
def test_the_weight_turns_an_error_of_x0_into_one_of_the_network(parameterization, process):
    t = inner_times(process)
    x_t, f, other = torch.randn(3, len(t), 5, dtype=torch.float64)
    error = answer(parameterization, process, x_t, t, f) - answer(
        parameterization, process, x_t, t, other
    )
    weighted = parameterization(process, t).out ** -2 * error.square().mean(1)
    close(weighted, (f - other).square().mean(1), rtol=1e-6)


# EDM


@every("process", PROCESSES)
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_keeps_unit_variance_at_every_noise_level(process, sigma_data):
    t = torch.cat([f64(process.t_min, process.t_max), inner_times(process)])
    alpha, sigma, c = process.alpha(t), process.sigma(t), Edm(sigma_data)(process, t)
    close(c.inp**2 * (alpha**2 * sigma_data**2 + sigma**2), torch.ones_like(t), rtol=1e-12)
    # The network's target (x0 - skip·x_t)/out in its two independent parts, x0 and noise.
    target = ((1 - c.skip * alpha) * sigma_data / c.out) ** 2 + (c.skip * sigma / c.out) ** 2
    close(target, torch.ones_like(t), rtol=1e-8)


def test_trigflow_is_edm_with_the_opposite_sign():
    sigma_data = 0.5
    trig = Trig(sigma_data)
    t = torch.cat([f64(0.004), inner_times(trig)])
    x, f = torch.randn(2, len(t), 3, dtype=torch.float64)
    cos, sin = torch.cos(t)[:, None], torch.sin(t)[:, None]
    # TrigFlow: x0 = cos(t) x - sin(t) sigma_data F(x/sigma_data).
    close(answer(Edm(sigma_data), trig, x, t, -f), cos * x - sin * sigma_data * f)
    close(Edm(sigma_data)(trig, t).inp, torch.full_like(t, 1 / sigma_data))
    # The same point in VE: x/cos(t) at noise level sigma_data·tan(t), with skip cos², out
    # sigma_data·sin.
    level = sigma_data * torch.tan(t)
    c = Edm(sigma_data)(VE, level)
    close(c.skip, torch.cos(t) ** 2)
    close(c.out, sigma_data * torch.sin(t))
    close(answer(Edm(sigma_data), VE, x / cos, level, -f), cos * x - sin * sigma_data * f)


# Boundaries


BOUNDARIES = {
    f"{kind}-{name}": (p.boundary(), process)
    for name, process in PROCESSES.items()
    for kind, p in PARAMETERIZATIONS.items()
}


@every("case", BOUNDARIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_boundary_is_the_identity_at_t_min(case, dtype):
    boundary, process = case
    x, f = torch.randn(2, 5, 3, 4, dtype=dtype)
    close(answer(boundary, process, x, rows(process.t_min, 5), 100 * f), x, rtol=0)  # bit for bit


@every("parameterization", PARAMETERIZATIONS)
def test_the_boundary_of_a_boundary_is_itself(parameterization):
    boundary = parameterization.boundary()
    assert boundary.boundary() == boundary


def test_edm_has_the_published_boundary_with_its_own_sigma_data():
    assert Edm(0.9).boundary() == CmBoundary(0.9)
    assert Velocity().boundary() == ConsistencyBoundary(of=Velocity())


@every("process", PROCESSES)
@every("parameterization", PARAMETERIZATIONS)
def test_the_general_boundary_is_a_step_to_t_min(parameterization, process):
    t = inner_times(process)
    x, f = torch.randn(2, len(t), 3, dtype=torch.float64)
    x0 = answer(parameterization, process, x, t, f)
    stepped = process.step(x, x0, t, rows(process.t_min, len(t)))
    close(
        answer(ConsistencyBoundary(of=parameterization), process, x, t, f),
        stepped,
        rtol=1e-9,
        atol=1e-9,
    )


def test_the_published_boundary_in_another_process_is_the_same_function():
    # Seen from rectified flow: u = t/(1 - t), x_VE = x/(1 - t); it ends at x_VE = x/(1 - t_min) of
    # level t_min.
    flow = RectifiedFlow(t_min=0.01, t_max=0.9)
    ve = replaced(VE, t_min=0.01 / 0.99, t_max=9.0)
    t = inner_times(flow)
    x, f = torch.randn(2, len(t), 3, dtype=torch.float64)
    expected = answer(CmBoundary(), ve, x / (1 - t)[:, None], t / (1 - t), f)
    close(answer(CmBoundary(), flow, x, t, f), 0.99 * expected, rtol=1e-10)


@every("process", PROCESSES)
@every("parameterization", PARAMETERIZATIONS)
def test_a_boundary_is_defined_wherever_its_prediction_is(parameterization, process):
    """At t_max too, where alpha may be 0, as in rectified flow."""
    t = f64(process.t_max)
    if all(torch.isfinite(c).all() for c in parameterization(process, t)):
        assert all(torch.isfinite(c).all() for c in parameterization.boundary()(process, t))


def test_the_published_boundary_in_pure_noise():
    skip, out, inp = CmBoundary(0.4)(RectifiedFlow(t_min=0.01), f64(1.0))
    close(
        torch.cat([skip, out, inp]), f64(0.0, 0.99 * 0.4, 1.0)
    )  # u -> ∞: skip 0; out sigma_data, times alpha_min


def test_velocity_and_sample_are_defined_in_pure_noise():
    x, f = torch.randn(2, 1, 4, dtype=torch.float64)
    process = RectifiedFlow()
    close(answer(Velocity(), process, x, f64(1.0), f), -f)  # v = -x0 there
    close(answer(Flow(), process, x, f64(1.0), f), x - f)  # flow = noise - x0
    close(answer(SamplePrediction(), process, x, f64(1.0), f), f)


@every("parameterization", PARAMETERIZATIONS)
def test_a_boundary_leads_back_to_what_the_network_predicts(parameterization):
    of = parameterization.prediction
    assert of.prediction == of
    assert of.boundary().prediction == of
    assert not isinstance(of, Boundary)
