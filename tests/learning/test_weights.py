"""Weights over time by their definitions: each turns a squared error in x0 into one of what it is
named after.
"""

import pytest
import torch
from tests.diffusion.cases import (
    PARAMETERIZATIONS,
    PROCESSES,
    close,
    every,
    f64,
    inner_times,
    known,
)
from tests.stand_ins import Output

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.parameterization import Edm, Epsilon, SamplePrediction, Velocity
from fewstep.diffusion.process import VarianceExploding, VariancePreserving, VariancePreservingTable
from fewstep.diffusion.times import Karras
from fewstep.diffusion.types import per_sample
from fewstep.learning.weights import interval_weight, weight

GUESSES = 0.3, -0.9  # of two networks, at every input


def denoisers(process, parameterization, own=None):
    """Two networks that differ by a constant everywhere."""
    return [
        Denoiser(Output(lambda x, t, c=c: torch.full_like(x, c)), process, parameterization, own)
        for c in GUESSES
    ]


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
    process = known(process, parameterization)
    t, _, one, other, denoiser = looks(process, parameterization)
    found = weight("output", denoiser, t) * square(one, other)
    close(found, torch.full_like(found, (GUESSES[0] - GUESSES[1]) ** 2), rtol=1e-9)


@every("process", PROCESSES)
@every("parameterization", PARAMETERIZATIONS)
def test_the_others_do_not_depend_on_the_prediction(process, parameterization):
    """The noise is (x_t - alpha x0)/sigma, v is (alpha noise - sigma x0)/rho, whatever the network
    says.
    """
    process = known(process, parameterization)
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
        "karras": in_noise + 4 * error,
    }.items():
        found = weight(kind, denoiser, t)
        assert found.dtype == torch.float64
        assert found.shape == t.shape
        close(found * error, expected, rtol=1e-8, atol=1e-12)
    close(weight("root_snr", denoiser, t) * error.sqrt(), in_noise.sqrt(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("parameterization", [Edm(), Epsilon(), Velocity(), SamplePrediction()])
@pytest.mark.parametrize("kind", ["output", "snr", "root_snr", "snr_plus_one", "truncated_snr"])
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
    """EDM's lambda is 1/sigma² + 1/sigma_data²; at the last index of Stable Diffusion's table SNR
    is 0.0047.
    """
    t = f64(0.002, 0.5, 1, 80)
    close(weight("output", denoisers(VarianceExploding(), Edm(0.5))[0], t), 1 / t**2 + 4)
    close(
        weight("truncated_snr", denoisers(VarianceExploding(), Edm(0.5))[0], t),
        f64(250000, 4, 1, 1),
    )
    table = VariancePreservingTable()
    (found,) = weight("snr", denoisers(table, Epsilon())[0], f64(999)).tolist()
    assert found == pytest.approx(0.0047, abs=5e-5)
    (found,) = weight("truncated_snr", denoisers(table, Epsilon())[0], f64(999)).tolist()
    assert found == 1


@every("process", PROCESSES)
def test_all_are_finite_at_both_ends(process):
    """Where alpha is 0 the SNR is 0, and the truncated one 1."""
    t = f64(process.t_min, process.t_max)
    kinds = ("uniform", "snr", "root_snr", "snr_plus_one", "truncated_snr", "karras", "output")
    for kind in kinds:
        found = weight(kind, denoisers(process, SamplePrediction())[0], t)
        assert found.isfinite().all()
        assert found.min() >= (0 if kind in ("snr", "root_snr") else 1)


def test_karras_is_the_output_weight_of_edm_networks():
    """So 1/c_out² of the published code, for the network that stands behind a consistency
    function's boundary.
    """
    process = VarianceExploding()
    t = inner_times(process)
    (denoiser, _) = denoisers(process, Edm(0.5))
    close(weight("karras", denoiser, t), weight("output", denoiser, t))
    close(weight("karras", denoisers(process, Edm(0.5).boundary())[0], t), 1 / t**2 + 4)


@every("process", PROCESSES)
def test_the_weights_of_an_interval(process):
    t = inner_times(process)
    s = t - 0.01 * (process.t_max - process.t_min)
    close(interval_weight("gap", process, t, s), 1 / (t - s))
    r_t, r_s = (process.sigma(u) / process.alpha(u) for u in (t, s))
    close(interval_weight("level_gap", process, t, s), 1 / (r_t - r_s), rtol=1e-9)
    if isinstance(process, VarianceExploding):
        close(
            interval_weight("gap", process, t, s),
            interval_weight("level_gap", process, t, s),
            rtol=1e-9,
        )
    for kind in ("uniform", "snr", "root_snr", "snr_plus_one", "truncated_snr", "karras"):
        close(interval_weight(kind, process, t, s), weight(kind, denoisers(process, Edm())[0], t))


@every("process", PROCESSES)
def test_the_interval_that_begins_at_the_top_has_a_weight(process):
    """A flow begins at pure noise, and its sampler too: sigma/alpha would give this interval no
    weight at all.
    """
    t, s = f64(process.t_max), f64(0.9 * process.t_max)
    assert interval_weight("gap", process, t, s).item() == pytest.approx(1 / (0.1 * process.t_max))


def test_the_gaps_of_the_first_stage_of_improved_consistency_training():
    """Specification, section 12: N = 11."""
    grid = Karras(end="t_min")(VarianceExploding(), 10)
    found = interval_weight("gap", VarianceExploding(), grid[:-1], grid[1:]).flip(0).tolist()
    golden = [67.9313, 14.6271, 4.2882, 1.5453, 0.6452, 0.3009, 0.1528, 0.0831, 0.0478, 0.0288]
    assert found == pytest.approx(golden, abs=5.1e-5)
