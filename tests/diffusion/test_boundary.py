"""Boundaries of students whose network speaks another process: the identity where they are
asked.
"""

import math

import pytest
import torch
from tests.diffusion.cases import (
    PAIRS,
    PARAMETERIZATIONS,
    Net,
    close,
    every,
    f64,
    inside,
    known,
    rows,
)
from tests.oracles import Gaussian

from fewstep.choice import replaced
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.parameterization import ConsistencyBoundary, Edm, LcmBoundary, Velocity
from fewstep.diffusion.samplers import Renoise
from fewstep.diffusion.times import Uniform

BOUNDARIES = {kind: one.boundary() for kind, one in PARAMETERIZATIONS.items()} | {
    "lcm of velocity": LcmBoundary(Velocity()),
    "general of edm": ConsistencyBoundary(Edm()),
}


@every("pair", PAIRS)
@every("boundary", BOUNDARIES)
def test_a_boundary_is_the_identity_at_the_t_min_of_the_process_that_asks(boundary, pair):
    """Bit by bit, whichever process the network speaks and wherever its own times end. And it is a
    limit: a hair above the end little is changed.
    """
    process, own = (known(p, boundary) for p in pair)
    for low in (0.0, 0.02, 0.3):
        here = replaced(process, t_min=max(process.t_min, process.at_level(f64(low)).item()))
        denoiser = Denoiser(Net(), here.within(own), boundary, own)
        end = rows(denoiser.process.t_min, 5)
        for dtype in (torch.float32, torch.float64):
            x = torch.randn(5, 3, dtype=dtype)
            assert torch.equal(denoiser(x, end, Cond(), end), x)
        skip, out, _ = denoiser.coefficients(end)
        assert torch.equal(skip, torch.ones_like(end))
        assert torch.equal(out, torch.zeros_like(end))
        above = here.at_level(here.level(end) * (1 + 1e-9))
        close(denoiser(x, above, Cond(), above), x, rtol=1e-4, atol=1e-5)


@every("pair", PAIRS)
@every("boundary", BOUNDARIES)
def test_where_two_ends_meet_a_boundary_is_one_map_in_both_processes(boundary, pair):
    process, own = (
        replaced(p, t_min=float(p.at_level(f64(0.05))), t_max=float(p.at_level(f64(9.0))))
        for p in pair
    )
    net, t, own_t = Net(), inside(process), inside(own)
    x = torch.randn(len(t), 3, dtype=torch.float64)
    scale = torch.hypot(own.alpha(own_t), own.sigma(own_t)) / torch.hypot(
        process.alpha(t), process.sigma(t)
    )
    expected = Denoiser(net, own, boundary)(scale[:, None] * x, own_t, Cond(), own_t)
    carried = process.alpha(f64(process.t_min)) / own.alpha(f64(own.t_min))
    close(
        Denoiser(net, process, boundary, own)(x, t, Cond(), t),
        carried * expected,
        rtol=1e-8,
        atol=1e-8,
    )


@every("pair", PAIRS)
@every("boundary", {kind: BOUNDARIES[kind] for kind in ("epsilon", "edm", "lcm of velocity")})
def test_a_chain_that_ends_at_the_boundary_has_one_spread_at_any_number_of_steps(boundary, pair):
    """f is the exact flow to t_min, then the student's own answer there. On N(0, 0.5²) the spread
    of multistep sampling is then that of x at t_min, whatever the number of steps.
    """
    process, own = (known(p, boundary) for p in pair)
    narrow = replaced(process, t_min=float(process.at_level(f64(0.1)).clamp(min=0)))
    student = Denoiser(Net(), narrow.within(own), boundary, own)
    process, oracle = student.process, Gaussian(student.process)

    def chain(x_t, t, cond, s=None):
        end = rows(process.t_min, len(t))
        return student(oracle.flow(x_t, t, end), end, cond, end)

    start = oracle.spread(f64(process.t_max)) / process.prior(torch.ones(1, dtype=torch.float64))
    for steps in (1, 2, 4, 8):
        draws = Draws(2, range(64))
        x = Renoise(steps, Uniform(end="t_min"))(
            chain, process, start * Draws(1, range(64)).normal(64).double(), Cond(), draws
        )
        expected = oracle.spread(f64(process.t_min)).item()
        assert x.std().item() == pytest.approx(expected, rel=4 / math.sqrt(2 * x.numel()))
