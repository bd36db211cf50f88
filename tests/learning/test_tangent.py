"""The derivative along a trajectory: forward mode against differences, in every process and on our
networks.
"""

import pytest
import torch
from tests.oracles import Gaussian
from tests.stand_ins import Output
from torch import nn

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.densities import LogitNormal
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.parameterization import Edm, Epsilon, Flow, Velocity
from fewstep.diffusion.process import (
    RectifiedFlow,
    Trig,
    VarianceExploding,
    VariancePreserving,
    VariancePreservingTable,
)
from fewstep.learning.method import Clock
from fewstep.learning.tangent import (
    Difference,
    Forward,
    Point,
    flow_error,
    jump_and_rate,
    normalised,
    ordered,
    per_log_ratio,
    per_rectified,
    rectified,
    regressed,
    trajectory_rate,
    warmed,
)
from fewstep.models.dit import Dit
from fewstep.models.space import labelled
from fewstep.models.unet import UNet

PROCESSES = [
    VarianceExploding(),
    VariancePreserving(),
    VariancePreservingTable(),
    RectifiedFlow(),
    Trig(),
]
NETWORKS = [
    UNet(
        channels=8,
        multipliers=(1, 2),
        blocks=1,
        attention=(2,),
        head_channels=8,
        groups=4,
        extra=("s",),
    ),
    Dit(width=16, depth=2, heads=2, mlp_ratio=2, extra=("s",)),
]


def name_of(value):
    return type(value).__name__


def times(process, share):
    """Times by their share of the range of angles."""
    low, high = process.angle(torch.tensor([process.t_min, process.t_max], dtype=torch.float64))
    return process.time_of(low + (high - low) * torch.tensor(share, dtype=torch.float64))


def network(spec, dtype=torch.float32, dropout=0.0):
    torch.manual_seed(0)
    made = spec.build(labelled((1, 8, 8), 10, True))
    for parameter in made.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    for module in made.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return made.to(dtype)


def point(process, rows=6):
    t = times(process, [0.02, 0.2, 0.4, 0.6, 0.8, 0.97][:rows])
    s = times(process, [0.01, 0.05, 0.3, 0.2, 0.7, 0.5][:rows])
    x = torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    return Point(x * torch.hypot(process.alpha(t), process.sigma(t))[:, None, None, None], t, s)


COND = Cond({"label": torch.arange(6)})


@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
def test_a_trajectory_is_the_probability_flow_of_the_teachers_answer(process):
    data = Gaussian(process, 0.3, 0.5)
    at = point(process)
    rate = trajectory_rate(process, at.x, data(at.x, at.t), at.t, torch.ones_like(at.t))
    torch.testing.assert_close(rate.x, data.velocity(at.x, at.t), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
def test_units_of_time(process):
    """dt/dτ by the inverse functions: a small step of t changes τ by what the unit says."""
    t = times(process, [0.11, 0.35, 0.52, 0.74, 0.9])
    for unit, clock in (
        (per_log_ratio, lambda t: torch.log(torch.tan(process.angle(t)))),
        (per_rectified, lambda t: rectified(process, t)),
    ):
        h = 1e-6 * unit(process, t)
        torch.testing.assert_close(
            (clock(t + h) - clock(t - h)) / 2e-6, torch.ones_like(t), rtol=1e-6, atol=0
        )
    flow = RectifiedFlow()
    torch.testing.assert_close(rectified(process, t), flow.time_of(process.angle(t)))


@pytest.mark.parametrize("spec", NETWORKS, ids=name_of)
@pytest.mark.parametrize(
    ("process", "prediction"),
    [
        (VarianceExploding(), Edm()),
        (VariancePreservingTable(), Epsilon()),
        (RectifiedFlow(), Flow()),
        (VariancePreserving(), Velocity()),
    ],
    ids=name_of,
)
def test_forward_mode_is_the_limit_of_differences_on_our_networks(spec, process, prediction):
    """In float64 the central difference is off by step² alone, about (250 step)² of the largest
    frequency.
    """
    spec = type(spec)(
        **{
            **vars(spec),
            "time_input": "log_sigma" if process == VarianceExploding() else "identity",
        }
    )
    denoiser = Denoiser(network(spec, torch.float64), process, prediction)
    at = point(process)
    rate = trajectory_rate(process, at.x, 0.5 * at.x, at.t, per_log_ratio(process, at.t))
    value, exact = Forward()(denoiser, at, rate, COND)
    other, close = Difference(step=1e-6)(denoiser, at, rate, COND)
    torch.testing.assert_close(value, other)
    torch.testing.assert_close(close, exact, rtol=1e-6, atol=1e-6 * exact.abs().max().item())
    assert exact.abs().max() > 0.1


@pytest.mark.parametrize("unit", [per_log_ratio, per_rectified])
@pytest.mark.parametrize("spec", NETWORKS, ids=name_of)
@pytest.mark.parametrize(
    ("process", "kind"), [(VarianceExploding(), "log_sigma"), (RectifiedFlow(), "thousand")]
)
def test_in_fp32_the_difference_follows_to_a_few_thousandths(process, kind, spec, unit):
    """Rounding 6e-8·|F|/h and truncation (250 step)²/6, both below 1e-3, in every row: whatever
    unit τ has.

    Per unit of rectified-flow time ln sigma of EDM moves by 1 at its slowest, by 80 at t = 80, and
    by 500 at t_min.
    """
    spec = type(spec)(**{**vars(spec), "time_input": kind})
    denoiser = Denoiser(network(spec), process, Edm())
    at = point(process)
    s = None if at.s is None else torch.where(torch.arange(6) % 2 == 0, unit(process, at.s), 0.0)
    rate = trajectory_rate(process, at.x, 0.5 * at.x, at.t, unit(process, at.t))._replace(s=s)
    exact = Forward()(denoiser, at, rate, COND)[1].flatten(1)
    close = Difference()(denoiser, at, rate, COND)[1].flatten(1)
    assert ((close - exact).norm(dim=1) < 5e-3 * exact.norm(dim=1)).all()


def test_a_network_seen_from_another_process_is_asked_at_its_own_pace():
    """A table's network, which embeds its index, on rectified flow's times: h is found in the
    indices.
    """
    table, flow = VariancePreservingTable(), RectifiedFlow()
    spec = type(NETWORKS[0])(**{**vars(NETWORKS[0]), "time_input": "identity"})
    denoiser = Denoiser(network(spec), table, Velocity()).under(flow.within(table))
    at = point(denoiser.process)
    rate = trajectory_rate(
        denoiser.process, at.x, 0.5 * at.x, at.t, per_rectified(denoiser.process, at.t)
    )
    exact = Forward()(denoiser, at, rate, COND)[1]
    close = Difference()(denoiser, at, rate, COND)[1]
    assert (close - exact).norm() < 5e-3 * exact.norm()


@pytest.mark.parametrize("tangent", [Forward(), Difference()], ids=name_of)
def test_only_the_network_itself_runs(tangent):
    """Neither autocast, nor the compiled callable, nor activations that are kept; no gradient is
    left.
    """
    process = VarianceExploding()
    denoiser = Denoiser(network(NETWORKS[0]).requires_grad_(True), process, Edm())
    at = point(process)
    rate = trajectory_rate(process, at.x, 0.5 * at.x, at.t, per_log_ratio(process, at.t))
    plain = tangent(denoiser, at, rate, COND)
    denoiser.autocast, denoiser._compiled = torch.bfloat16, lambda *a: 1 / 0
    denoiser.network.checkpointing = True
    again = tangent(denoiser, at, rate, COND)
    for a, b in zip(plain, again):
        assert torch.equal(a, b)
        assert not b.requires_grad
        assert b.dtype == torch.float64


def test_differences_are_one_sided_at_the_ends_of_the_range():
    """No network is asked outside [t_min, t_max], and the slope is right at both ends."""
    process, asked = VarianceExploding(), []

    def answer(x, t):
        asked.append(t)
        return x * torch.log(t)[:, None]

    from fewstep.diffusion.parameterization import SamplePrediction

    denoiser = Denoiser(Output(answer), process, SamplePrediction())
    t = torch.tensor([process.t_min, 1.0, process.t_max], dtype=torch.float64)
    at = Point(torch.ones(3, 2, dtype=torch.float64), t)
    _, slope = Difference(step=1e-5)(denoiser, at, Point(torch.zeros_like(at.x), t), Cond())
    torch.testing.assert_close(slope, torch.ones_like(slope), rtol=1e-5, atol=0)
    assert torch.stack(asked).min() == process.t_min
    assert torch.stack(asked).max() <= process.t_max * (1 + 1e-15)


@pytest.mark.parametrize("tangent", [Forward(), Difference()], ids=name_of)
@pytest.mark.parametrize("spec", NETWORKS, ids=name_of)
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_the_tangent_has_the_masks_of_the_pass_that_learns(tangent, spec, autocast):
    denoiser = Denoiser(network(spec, dropout=0.5).train(), VarianceExploding(), Edm())
    denoiser.autocast = autocast
    at = point(denoiser.process)
    at = at._replace(x=at.x.float())
    rate = trajectory_rate(
        denoiser.process, at.x, 0.5 * at.x, at.t, per_log_ratio(denoiser.process, at.t)
    )
    jump, seen, _ = jump_and_rate(tangent, denoiser, at, rate, COND)
    other = denoiser(at.x, at.t, COND, at.s)
    off, apart = (jump - seen).norm(), (jump - other).norm()
    assert jump.requires_grad
    assert (
        off < (1e-5 if autocast is None else 0.1) * apart
    )  # bf16 rounds, 2^-8; other masks are far away


def test_the_state_of_the_masks_advances_by_one_pass():
    denoiser = Denoiser(network(NETWORKS[0], dropout=0.5).train(), VarianceExploding(), Edm())
    at = point(denoiser.process)
    rate = trajectory_rate(denoiser.process, at.x, at.x, at.t, torch.ones_like(at.t))
    states = []
    for tangent in (Forward(), Difference(), None):
        torch.manual_seed(3)
        jump_and_rate(tangent, denoiser, at, rate, COND) if tangent else denoiser(
            at.x, at.t, COND, at.s
        )
        states.append(torch.get_rng_state())
    assert torch.equal(states[0], states[2])
    assert torch.equal(states[1], states[2])


@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
def test_the_flow_error_is_that_of_rectified_flow_in_every_process(process, share):
    """The same student and point, seen from rectified flow, where it is v - u - share (t - s) du/dt
    literally.
    """
    flow = RectifiedFlow(1e-5, 1.0)
    at = point(process)
    late, early = rectified(process, at.t), rectified(process, at.s)

    def answer(x, t, s):
        return torch.tanh(1.3 * x) * (0.2 + 0.5 * t * s)[:, None, None, None]

    class Student(nn.Module):
        inputs = ("s",)

        def __init__(self, scale):
            super().__init__()
            self.scale = scale

        def forward(self, x, t, cond, s=None):
            scale = self.scale(t)[:, None, None, None]
            return answer(x / scale, *(rectified(self.process, u) for u in (t, s)))

    def student(own):
        from fewstep.diffusion.parameterization import SamplePrediction

        network = Student(lambda t: own.alpha(t) + own.sigma(t))
        network.process = own
        return Denoiser(network, own, SamplePrediction())

    x0 = 0.4 * torch.ones_like(at.x)
    _, found = flow_error(Difference(1e-6), student(process), at, x0, Cond(), share)
    _, again = flow_error(Forward(), student(process), at, x0, Cond(), share)
    torch.testing.assert_close(found, again, rtol=1e-5, atol=1e-5)
    x = at.x / (process.alpha(at.t) + process.sigma(at.t))[:, None, None, None]
    v = (x - x0) / late[:, None, None, None]

    def average(x, t):
        return (x - answer(x, t, early)) / t[:, None, None, None]

    u, bend = torch.func.jvp(average, (x, late), (v, torch.ones_like(late)))
    expected = v - u - share * (late - early)[:, None, None, None] * bend
    torch.testing.assert_close(again, expected, rtol=1e-7, atol=1e-8)
    assert flow.t_max == 1.0


def test_what_is_regressed_has_the_value_of_the_error_and_the_gradient_of_the_jump():
    jump = torch.randn(3, 4, requires_grad=True)
    error, scale = (
        torch.randn(3, 4, dtype=torch.float64),
        torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64),
    )
    left = regressed(jump, error, scale)
    assert torch.equal(left, error.float())
    left.square().sum().backward()
    torch.testing.assert_close(jump.grad, (2 * error / scale[:, None]).float())


def test_normalised_and_warmed():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(normalised(x, 0.1), torch.tensor([[3 / 5.1, 4 / 5.1], [0.0, 0.0]]))
    assert [warmed(Clock(step, 100, 1), 0.1) for step in (0, 4, 9, 50)] == pytest.approx(
        [0.1, 0.5, 1, 1]
    )
    assert warmed(Clock(0, 100, 1), 0.0) == 1


def test_ordered_times():
    process, draws = VarianceExploding(), Draws(0, range(4096))
    t, s = ordered(process, draws, LogitNormal(-0.6, 1.6), LogitNormal(-4.0, 1.6), 0.25)
    assert ((process.t_min <= s) & (s <= t) & (t <= process.t_max)).all()
    # 5 % of the draws of s lie above t, so that s = t in 0.25 + 0.75·Φ(-3.4/√(2·1.6²)) = 0.30 of
    # the rows.
    assert (s == t).double().mean().item() == pytest.approx(0.30, abs=0.02)
