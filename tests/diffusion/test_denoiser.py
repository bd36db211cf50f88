"""The denoiser: one question for every process and prediction, its velocity and its features."""

import pytest
import torch
from tests.diffusion.cases import (
    PAIRS,
    PARAMETERIZATIONS,
    PROCESSES,
    Net,
    close,
    every,
    f64,
    inner_times,
    inside,
    known,
    narrowed,
    rows,
)
from tests.oracles import Gaussian
from torch import nn

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.parameterization import (
    Boundary,
    Edm,
    Epsilon,
    Flow,
    Velocity,
)
from fewstep.diffusion.process import (
    RectifiedFlow,
    VarianceExploding,
    VariancePreservingTable,
)

VE = VarianceExploding()
PREDICTIONS = {
    kind: one for kind, one in PARAMETERIZATIONS.items() if not isinstance(one, Boundary)
}


class ExactNoise(nn.Module):
    """The noise that Gaussian data makes one expect, in the network's own process."""

    inputs = ()

    def __init__(self, own, mean=0.3):
        super().__init__()
        self.oracle = Gaussian(own, mean)

    def forward(self, x, t, cond, s=None):
        own = self.oracle.process
        return (x - own.alpha(t).to(x)[:, None] * self.oracle(x, t)) / own.sigma(t).to(x)[:, None]


# x0


@every("process", PROCESSES)
@every("parameterization", PARAMETERIZATIONS)
def test_x0_is_the_affine_map_of_the_parameterization(parameterization, process):
    process = known(process, parameterization)
    net, t = Net(), inner_times(process)
    x = torch.randn(len(t), 3, dtype=torch.float64)
    c = parameterization(process, t)
    f = torch.sin(2 * c.inp[:, None] * x) + torch.cos(t)[:, None]
    close(
        Denoiser(net, process, parameterization)(x, t, Cond()),
        c.skip[:, None] * x + c.out[:, None] * f,
        rtol=1e-10,
    )
    assert torch.equal(net.t, t)


@every("pair", PAIRS)
@every("parameterization", PREDICTIONS)
def test_another_process_sees_the_same_x0(parameterization, pair):
    process, own = (known(p, parameterization) for p in pair)
    net, t, own_t = Net(), inside(process), inside(own)
    x = torch.randn(len(t), 3, dtype=torch.float64)
    scale = torch.hypot(own.alpha(own_t), own.sigma(own_t)) / torch.hypot(
        process.alpha(t), process.sigma(t)
    )
    denoiser = Denoiser(net, own, parameterization)
    expected = denoiser(scale[:, None] * x, own_t, Cond(), own_t.flip(0))
    narrow = process.within(own)
    other = denoiser.under(narrow)
    assert other.process == narrow
    assert other.own == own
    assert other.network is net
    close(other(x, t, Cond(), t.flip(0)), expected, rtol=1e-8, atol=1e-8)
    close(net.t, own_t, rtol=1e-9)  # the network is asked in its own unit
    close(net.s, own_t.flip(0), rtol=1e-9)
    c, own_c = other.coefficients(t), denoiser.coefficients(own_t)
    close(
        torch.stack(c), torch.stack([own_c.skip * scale, own_c.out, own_c.inp * scale]), rtol=1e-8
    )


def test_under_goes_back_and_keeps_autocast():
    denoiser = Denoiser(Net(), VE, Edm())
    denoiser.autocast = torch.bfloat16
    there = denoiser.under(RectifiedFlow().within(VE))
    back = there.under(VE)
    assert there.autocast == back.autocast == torch.bfloat16
    back.autocast = denoiser.autocast = None
    x, t = torch.randn(4, 3), f64(0.01, 0.5, 3.0, 70.0)
    assert torch.equal(back(x, t, Cond()), denoiser(x, t, Cond()))


@every("pair", PAIRS)
def test_under_refuses_what_the_network_does_not_know(pair):
    process, own = pair
    denoiser = Denoiser(Net(), own, Edm())
    ends, own_ends = (p.angle(f64(p.t_min, p.t_max)) for p in pair)
    if ends[0] < own_ends[0] * (1 - 1e-6) or ends[1] > own_ends[1] * (1 + 1e-6):
        with pytest.raises(ValueError, match="narrow it first"):
            denoiser.under(process)
    denoiser.under(process.within(own))  # as the message says


@every("process", PROCESSES)
def test_times_in_float32_and_samples_in_half_are_computed_higher(process):
    net, t = Net(), inner_times(process)
    denoiser = Denoiser(net, process, Velocity())
    x = torch.randn(len(t), 3)
    assert denoiser(x.half(), t, Cond()).dtype == torch.float32
    assert denoiser(x.double(), t, Cond()).dtype == torch.float64
    denoiser(x, t.float(), Cond())
    assert net.t.dtype == torch.float64
    assert all(c.dtype == torch.float64 for c in denoiser.coefficients(t.float()))


# Velocity


@every("process", PROCESSES)
@every("parameterization", PARAMETERIZATIONS)
def test_the_velocity_is_made_of_x0_and_noise(parameterization, process):
    process = known(process, parameterization)
    t = inner_times(process)
    x = torch.randn(len(t), 3, dtype=torch.float64)
    denoiser = Denoiser(Net(), process, parameterization)
    x0 = denoiser(x, t, Cond())
    alpha, sigma, alpha_rate, sigma_rate = (
        v[:, None] for v in (process.alpha(t), process.sigma(t), *process.rates(t))
    )
    expected = alpha_rate * x0 + sigma_rate * (x - alpha * x0) / sigma
    close(denoiser.velocity(x, t, Cond()), expected, rtol=1e-8, atol=1e-8)


@every("process", PROCESSES)
@pytest.mark.parametrize("own", PROCESSES)
def test_the_velocity_of_an_exact_network_is_the_exact_one(process, own):
    own, process = narrowed(PROCESSES[own]), narrowed(process)
    denoiser = Denoiser(ExactNoise(own), process.within(own), Epsilon(), own=own)
    t = inside(process)
    x = torch.randn(len(t), 3, dtype=torch.float64)
    close(denoiser(x, t, Cond()), Gaussian(process, 0.3)(x, t), rtol=1e-7, atol=1e-7)
    close(
        denoiser.velocity(x, t, Cond()), Gaussian(process, 0.3).velocity(x, t), rtol=1e-7, atol=1e-7
    )


@pytest.mark.parametrize("parameterization", [Edm(), Epsilon(), Velocity(), Flow()])
@every("process", PROCESSES)
def test_the_velocity_keeps_its_digits_near_the_data(process, parameterization):
    """At sigma/alpha = 1e-4 the direct formula divides a rounded difference by sigma."""
    denoiser = Denoiser(Net(), known(process, parameterization), parameterization)
    t = process.time_of(torch.atan(rows(1e-4, 64)))
    x = torch.randn(64, 3)
    exact = denoiser.velocity(x.double(), t, Cond())

    def error(v):
        return ((v - exact).abs().max() / exact.abs().max()).item()

    x0 = denoiser(x, t, Cond())
    alpha, sigma, alpha_rate, sigma_rate = (
        v.float()[:, None] for v in (process.alpha(t), process.sigma(t), *process.rates(t))
    )
    direct = alpha_rate * x0 + sigma_rate * (x - alpha * x0) / sigma
    assert error(denoiser.velocity(x, t, Cond())) < 1e-6
    assert error(direct) > 1e-5


def test_velocity_prediction_of_rectified_flow_is_the_network_itself():
    net, x, t = Net(), torch.randn(4, 3), f64(0.001, 0.3, 0.8, 1.0)
    close(
        Denoiser(net, RectifiedFlow(), Flow()).velocity(x, t, Cond()),
        net(x, t, Cond()),
        rtol=1e-6,
        atol=1e-6,
    )


# Features


class Layers(nn.Module):
    """Three layers, the second called twice; `reached` says how far a pass came."""

    inputs = ()

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.inner = nn.ModuleDict({"deep": nn.Linear(4, 4)})
        self.fails = False

    def forward(self, x, t, cond, s=None):
        self.reached = "first"
        h = self.first(x)
        self.reached = "middle"
        h = self.middle(torch.tanh(self.middle(h)))
        if self.fails:
            raise RuntimeError("a broken network")
        self.reached = "last"
        return self.last(self.inner["deep"](h))

    def hooks(self):
        return sum(len(m._forward_hooks) for m in self.modules())


def test_features_are_the_outputs_of_the_named_layers():
    net = Layers()
    denoiser, x, t = Denoiser(net, VE, Edm()), torch.randn(2, 3), f64(0.1, 5.0)
    x0, taps = denoiser.features(x, t, Cond(), ["inner.deep", "first", "middle"], until_last=False)
    assert list(taps) == ["inner.deep", "first", "middle"]
    h = net.first(denoiser.coefficients(t).inp.float()[:, None] * x)
    close(taps["first"], h, rtol=1e-6)
    close(taps["middle"], net.middle(h), rtol=1e-6)  # of its two calls the first
    close(taps["inner.deep"], net.inner["deep"](net.middle(torch.tanh(net.middle(h)))), rtol=1e-5)
    assert torch.equal(x0, denoiser(x, t, Cond()))
    assert net.hooks() == 0


@pytest.mark.parametrize(
    ("layers", "reached"), [(["first"], "first"), (["middle", "first"], "middle")]
)
def test_features_stop_behind_the_last_layer_asked_for(layers, reached):
    net = Layers()
    denoiser, x, t = Denoiser(net, VE, Edm()), torch.randn(2, 3), f64(0.1, 5.0)
    x0, taps = denoiser.features(x, t, Cond(), layers)
    assert x0 is None
    assert net.reached == reached
    assert list(taps) == layers
    whole = denoiser.features(x, t, Cond(), layers, until_last=False)[1]
    for name in layers:
        assert torch.equal(taps[name], whole[name])
    assert net.hooks() == 0


def test_features_carry_gradients():
    net = Layers()
    x = torch.randn(2, 3, requires_grad=True)
    Denoiser(net, VE, Edm()).features(x, f64(0.1, 5.0), Cond(), ["first"])[1][
        "first"
    ].sum().backward()
    assert x.grad.abs().min() > 0
    assert net.first.weight.grad is not None
    assert net.middle.weight.grad is None


def test_features_leave_no_hook_behind_an_error():
    net = Layers()
    denoiser, x, t = Denoiser(net, VE, Edm()), torch.randn(2, 3), f64(0.1, 5.0)
    net.fails = True
    with pytest.raises(RuntimeError, match="a broken network"):
        denoiser.features(x, t, Cond(), ["first", "last"])
    assert net.hooks() == 0
    net.fails = False
    with pytest.raises(AttributeError):
        denoiser.features(x, t, Cond(), ["first", "no_such_layer"])
    assert net.hooks() == 0


# Autocast


class Casting(nn.Module):
    inputs = ()

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x, t, cond, s=None):
        f = self.linear(x)
        self.seen = torch.is_autocast_enabled("cpu"), x.dtype, f.dtype
        return f


def test_autocast_surrounds_the_network_alone():
    net = Casting()
    denoiser, x, t = Denoiser(net, VE, Edm()), torch.randn(5, 3), f64(0.002, 0.1, 1.0, 10.0, 80.0)
    full = denoiser(x, t, Cond())
    assert net.seen == (False, torch.float32, torch.float32)
    denoiser.autocast = torch.bfloat16
    half = denoiser(x, t, Cond())
    assert net.seen == (True, torch.float32, torch.bfloat16)
    assert half.dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")
    # skip·x stays in float32: what bfloat16 costs is its share of the network's part alone.
    c = denoiser.coefficients(t)
    assert ((half - full).abs().amax(1) <= 2**-6 * c.out * 3).all()
    assert not torch.equal(half, full)
    assert denoiser.velocity(x, t, Cond()).dtype == torch.float32


def test_a_table_denoiser_under_ve_is_asked_for_whole_times_between():
    # 999 of the table is noise level 14.61464; the network gets the index, not the level.
    net = Net()
    table = VariancePreservingTable()
    denoiser = Denoiser(net, table, Epsilon()).under(VE.within(table))
    denoiser(torch.randn(1, 2, dtype=torch.float64), f64(14.61464), Cond())
    assert net.t.item() == pytest.approx(999, abs=1e-3)
    assert (denoiser.process.t_min, denoiser.process.t_max) == pytest.approx(
        (0.02917, 14.61464), rel=1e-4
    )
