"""Flow maps in continuous time, both sides, against the closed form of N(mean, std²)."""

import pytest
import torch
from tests.methods.students import (
    assert_guides_only_what_knows_no_label,
    assert_reaches_the_exact_map,
    ideal,
    labelled,
    labels,
    samples,
)
from tests.oracles import Gaussian, batch_of
from tests.stand_ins import Answer, Exact, JumpGain, answering

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.densities import LogitNormal
from fewstep.diffusion.parameterization import Edm, Flow
from fewstep.diffusion.process import (
    RectifiedFlow,
    Trig,
    VarianceExploding,
    VariancePreserving,
    VariancePreservingTable,
)
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.losses import AdaptivePower
from fewstep.learning.method import Clock, Method
from fewstep.learning.tangent import Forward, Point, flow_error
from fewstep.methods.align_your_flow import AlignYourFlow

VE = VarianceExploding()
PROCESSES = [VE, VariancePreserving(), VariancePreservingTable(), RectifiedFlow(), Trig()]
CLOCK = Clock(99, 100, 64)


def kind(value):
    return type(value).__name__


def test_the_tangent_of_align_your_flow_is_minus_the_error_of_mean_flow():
    """e = u - [v - (t - s) du/dt] of mean flow's own algorithm against df/dt of flow maps
    (T-25).
    """
    process = RectifiedFlow()
    data = Gaussian(process, 0.1, 0.4)
    student = Denoiser(JumpGain(process), process, Flow())
    t, s = (
        torch.tensor([0.3, 0.8, 0.999], dtype=torch.float64),
        torch.tensor([0.1, 0.8, 0.002], dtype=torch.float64),
    )
    x = torch.tensor([[0.4], [-1.0], [2.0]], dtype=torch.float64)
    v = data.velocity(x, t)
    u, bend = torch.func.jvp(
        lambda x, t: student.network(x, t, Cond(), s), (x, t), (v, torch.ones_like(t))
    )
    e = u - (v - (t - s)[:, None] * bend)
    _, motion = torch.func.jvp(
        lambda x, t: x - (t - s)[:, None] * student.network(x, t, Cond(), s),
        (x, t),
        (v, torch.ones_like(t)),
    )
    _, error = flow_error(Forward(), student, Point(x, t, s), data(x, t), Cond())
    torch.testing.assert_close(error, -e)
    torch.testing.assert_close(error, motion)


@pytest.mark.parametrize(
    ("method", "process", "tolerance"),
    [
        (AlignYourFlow(warm_limit=1.0), VE, 0.03),
        (
            AlignYourFlow(
                side="lagrangian",
                density=LogitNormal(1.0, 2.0),
                target_density=LogitNormal(-1.0, 2.0),
            ),
            RectifiedFlow(),
            0.04,
        ),
    ],
    ids=["eulerian", "lagrangian"],
)
def test_training_reaches_the_exact_map(method, process, tolerance):
    """By value: 8 jumps and the one over the whole range, within a few hundredths of the sample's
    size.
    """
    assert_reaches_the_exact_map(method, process, tolerance)


def test_the_lagrangian_student_that_is_exact_does_not_move():
    for process in PROCESSES:
        data = Gaussian(process, 0.3, 0.5)
        method = AlignYourFlow(side="lagrangian")
        parts = method.Nets(answering(process, data.jump), Exact(process, data))
        assert (
            method.loss(parts, batch_of(0.3 + samples(128, d=3)), CLOCK).notes["tangent"].max()
            < 1e-7
        )
        parts.student = answering(process, lambda x, t, s, data=data: 1.01 * data.jump(x, t, s))
        assert (
            method.loss(parts, batch_of(0.3 + samples(128, d=3)), CLOCK).notes["tangent"].max()
            > 1e-3
        )


@pytest.mark.parametrize("process", PROCESSES, ids=kind)
def test_the_eulerian_student_that_is_exact_does_not_move(process):
    data = Gaussian(process, 0.3, 0.5)
    method = AlignYourFlow(warm_limit=1.0)
    parts = method.Nets(answering(process, data.jump), Exact(process, data))
    assert (
        method.loss(parts, batch_of(0.3 + samples(128, d=3)), CLOCK).notes["tangent"].max() < 1e-8
    )


def test_warm_up_of_align_your_flow_begins_with_the_teachers_velocity():
    """share -> 0 leaves v - F: a student that answers as the teacher does
    not move, wherever s is.
    """
    data = Gaussian(VE, 0.3, 0.5)
    method = AlignYourFlow(warm_limit=0.0)
    parts = method.Nets(answering(VE, lambda x, t, s: data(x, t)), Exact(VE, data))
    losses = method.loss(parts, batch_of(0.3 + samples(128)), Clock(0, 100, 64))
    assert losses.notes["tangent"].max() < 1e-9
    method = AlignYourFlow()
    assert method.loss(parts, batch_of(0.3 + samples(128)), CLOCK).notes["tangent"].max() > 0.1


@pytest.mark.parametrize(("step", "warm"), [(0, 0.0099), (49, 0.495), (99, 0.99), (999, 0.99)])
@pytest.mark.parametrize("side", ["eulerian", "lagrangian"])
def test_the_tangent_and_the_gradient_at_every_clock(side, step, warm):
    """v - F - warm (t - s) dF/dt, or v(f, s) + (t - s) dF/ds - F at all clocks; the gradient in F
    is -2 ĝ/d.
    """
    process = RectifiedFlow()
    data, method, seen = Gaussian(process, 0.3, 0.4), AlignYourFlow(side=side, equal=0.1), {}

    def network(x, t, s):
        out = torch.tanh(
            x * (1.5 + torch.sin(3 * t - 2 * s)[:, None]) + torch.cos(t + 4 * s)[:, None]
        )
        if torch.is_grad_enabled():
            seen["out"] = out.requires_grad_()
            out.retain_grad()
        return out

    parts = method.Nets(Denoiser(Answer(network), process, Flow()), Exact(process, data))
    losses = method.loss(parts, batch_of(samples(64, d=3)), Clock(step, 1000, 64))
    losses.terms["map"].sum().backward()

    batch = batch_of(samples(64, d=3))
    t = method.density(process, batch.draws).clamp(process.t_min, process.t_max)
    s = torch.minimum(method.target_density(process, batch.draws).clamp(min=process.t_min), t)
    s = torch.where(batch.draws.uniform() < 0.1, t, s)
    x = process.add_noise(batch.data, batch.noise(), t)
    gap, one = (t - s)[:, None], torch.ones_like(t)
    with torch.no_grad():
        if side == "eulerian":
            v = data.velocity(x, t)
            f, bend = torch.func.jvp(lambda x, t: network(x, t, s), (x, t), (v, one))
            g = v - f - warm * gap * bend
        else:
            f, bend = torch.func.jvp(lambda s: network(x, t, s), (s,), (one,))
            g = data.velocity(x - gap * f, s) + gap * bend - f
    goal = g / (g.norm(dim=1, keepdim=True) + 0.1)
    torch.testing.assert_close(
        losses.notes["tangent"].double(), g.norm(dim=1), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(losses.terms["map"], goal.square().mean(1), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(seen["out"].grad, -2 * goal / 3, rtol=1e-6, atol=1e-9)


def test_the_metric_is_that_of_the_normalised_tangent():
    """S/(S + c) with √S = ‖g‖/(‖g‖ + floor)."""
    method = AlignYourFlow(distance=AdaptivePower(1.0, 0.5), floor=0.3)
    parts = method.Nets(Denoiser(JumpGain(VE), VE, Edm()), Exact(VE, Gaussian(VE, 0.0, 0.5)))
    losses = method.loss(parts, batch_of(samples(64, d=3)), CLOCK)
    size = losses.notes["tangent"].double()
    square = (size / (size + 0.3)).square()
    torch.testing.assert_close(losses.terms["map"], square / (square + 0.5), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("side", ["eulerian", "lagrangian"])
def test_the_exact_student_of_a_guided_teacher_does_not_move(side, scale):
    """The exact map of N(m_null + g (m - m_null), std²); at any other g it moves."""
    method = AlignYourFlow(side=side, guidance=GuidanceRange(scale, scale), warm_limit=1.0)
    batch = batch_of(samples(128, d=3), cond=labels(128))
    parts = method.Nets(labelled(VE, Gaussian.jump, scale), labelled(VE, ideal))
    assert method.loss(parts, batch, CLOCK).notes["tangent"].max() < 1e-7
    parts.student = labelled(VE, Gaussian.jump, scale + 0.5)
    assert method.loss(parts, batch, CLOCK).notes["tangent"].max() > 1e-3


def test_guidance_needs_a_teacher_that_knows_no_label():
    assert_guides_only_what_knows_no_label(
        AlignYourFlow(), AlignYourFlow(guidance=GuidanceRange(2.0, 2.0))
    )


def test_targets_carry_no_gradient():
    made = torch.nn.Linear(1, 1).double()
    for side in ("eulerian", "lagrangian"):
        network, method = JumpGain(VE), AlignYourFlow(side=side)
        parts = method.Nets(Denoiser(network, VE, Edm()), Exact(VE, lambda x, t: made(x)))
        loss = method.loss(parts, batch_of(samples(16)), CLOCK).terms["map"]
        # ‖g/(‖g‖ + 0.1)‖²: its value is below 1 and says nothing of the size of g, its gradient is
        # that of one jump.
        assert loss.max() < 1
        loss.sum().backward()
        assert made.weight.grad is None
        assert all(p.grad.isfinite().all() for p in network.parameters())


def test_options():
    with pytest.raises(ValueError, match="1 validation error"):
        Method.parse({"kind": "align_your_flow", "side": "both"})
    assert AlignYourFlow(guidance=GuidanceRange(2.0, 2.0)).student_guidance().default == 2.0
    assert AlignYourFlow().student_guidance().kind == "none"
