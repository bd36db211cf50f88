"""Weights over time by their definitions: each turns a squared error in x0 into one of what it is named after."""

import pytest
import torch
from tests.diffusion.cases import PARAMETERIZATIONS, PROCESSES, close, every, f64, inner_times
from tests.oracles import Output

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.parameterization import Edm, Epsilon, SamplePrediction, Velocity
from fewstep.diffusion.process import VarianceExploding, VariancePreserving, VariancePreservingTable
from fewstep.diffusion.types import per_sample
from fewstep.learning.weights import weight

GUESSES = 0.3, -0.9  # of two networks, at every input


def denoisers(process, parameterization, own=None):
    """Two networks that differ by a constant everywhere."""
    return [Denoiser(Output(lambda x, t, c=c: torch.full_like(x, c)), process, parameterization, own) for c in GUESSES]


def looks(process, parameterization, own=None):
    """Times, x_t, and the x0 of both networks there."""
    t = inner_times(process)
    x_t = torch.randn(len(t), 3, dtype=torch.float64)
    one, other = denoisers(process, parameterization, own)
    return t, x_t, one(x_t, t, Cond()), other(x_t, t, Cond()), one


def square(a, b):
    return (a - b).square().mean(1)


@every("process", PROCESSES)
@every("parameterization", PARAMETERIZATIONS)
def test_output_is_the_error_of_what_the_network_itself_says(process, parameterization):
    t, _, one, other, denoiser = looks(process, parameterization)
    found = weight("output", denoiser, t) * square(one, other)
    close(found, torch.full_like(found, (GUESSES[0] - GUESSES[1]) ** 2), rtol=1e-9)


@every("process", PROCESSES)
@every("parameterization", PARAMETERIZATIONS)
def test_the_others_do_not_depend_on_the_prediction(process, parameterization):
    """The noise is (x_t - alpha x0)/sigma, v is (alpha noise - sigma x0)/rho, whatever the network says."""
    t, x_t, one, other, denoiser = looks(process, parameterization)
    alpha, sigma = (per_sample(a, x_t) for a in (process.alpha(t), process.sigma(t)))

    def noise(x0):
        return (x_t - alpha * x0) / sigma

    def v(x0):
        return (alpha * noise(x0) - sigma * x0) / torch.hypot(alpha, sigma)

    error, in_noise = square(one, other), square(noise(one), noise(other))
    for kind, expected in {
        "uniform": error,
        "snr": in_noise,
        "snr_plus_one": square(v(one), v(other)),
        "truncated_snr": torch.maximum(error, in_noise),
    }.items():
        found = weight(kind, denoiser, t)
        assert found.dtype == torch.float64
        assert found.shape == t.shape
        close(found * error, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("parameterization", [Edm(), Epsilon(), Velocity(), SamplePrediction()])
@pytest.mark.parametrize("kind", ["output", "snr", "snr_plus_one", "truncated_snr"])
def test_a_network_seen_from_another_process_has_the_same_weights(parameterization, kind):
    ve = VarianceExploding()
    vp = VariancePreserving().within(ve)
    t = inner_times(vp)
    at_home = ve.time_of(vp.angle(t))
    close(
        weight(kind, denoisers(vp, parameterization, ve)[0], t),
        weight(kind, denoisers(ve, parameterization)[0], at_home),
        rtol=1e-9,
    )


def test_the_published_numbers():
    """EDM's lambda is 1/sigma² + 1/sigma_data²; at the last index of Stable Diffusion's table SNR is 0.0047."""
    t = f64(0.002, 0.5, 1, 80)
    close(weight("output", denoisers(VarianceExploding(), Edm(0.5))[0], t), 1 / t**2 + 4)
    close(weight("truncated_snr", denoisers(VarianceExploding(), Edm(0.5))[0], t), f64(250000, 4, 1, 1))
    table = VariancePreservingTable()
    (found,) = weight("snr", denoisers(table, Epsilon())[0], f64(999)).tolist()
    assert found == pytest.approx(0.0047, abs=5e-5)
    (found,) = weight("truncated_snr", denoisers(table, Epsilon())[0], f64(999)).tolist()
    assert found == 1


@every("process", PROCESSES)
def test_all_are_finite_at_both_ends(process):
    """Where alpha is 0 the SNR is 0, and the truncated one 1."""
    t = f64(process.t_min, process.t_max)
    for kind in ("uniform", "snr", "snr_plus_one", "truncated_snr", "output"):
        found = weight(kind, denoisers(process, SamplePrediction())[0], t)
        assert found.isfinite().all()
        assert found.min() >= (0 if kind == "snr" else 1)
