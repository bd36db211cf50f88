"""Mean flows against the closed form of N(mean, std²), in every process."""

import math

import pytest
import torch
from tests.diffusion.cases import rows
from tests.methods.students import (
    assert_guides_only_what_knows_no_label,
    assert_reaches_the_exact_map,
    labels,
    samples,
)
from tests.oracles import Gaussian, batch_of
from tests.stand_ins import Exact, JumpGain, Masked, answering, net

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.densities import LogitNormal
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.parameterization import Edm, Flow, SamplePrediction
from fewstep.diffusion.process import (
    RectifiedFlow,
    Trig,
    VarianceExploding,
    VariancePreserving,
    VariancePreservingTable,
)
from fewstep.learning.batch import Batch
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.losses import AdaptivePower, Squared
from fewstep.learning.method import Clock, Method
from fewstep.learning.tangent import Forward, Point, flow_error, rectified
from fewstep.methods.mean_flow import MeanFlow

VE = VarianceExploding()
PROCESSES = [VE, VariancePreserving(), VariancePreservingTable(), RectifiedFlow(), Trig()]
CLOCK = Clock(99, 100, 64)


def kind(value):
    return type(value).__name__


@pytest.mark.parametrize("process", PROCESSES, ids=kind)
def test_the_oracle_is_the_average_velocity(process):
    """6.8 of the specification: one step with `jump` is the exact map, and s -> t gives the ideal
    denoiser.
    """
    data = Gaussian(process, 0.4, 0.6)
    angles = process.angle(torch.tensor([process.t_min, process.t_max], dtype=torch.float64))
    t = process.time_of(
        angles[0] + (angles[1] - angles[0]) * torch.tensor([0.3, 0.6, 0.95], dtype=torch.float64)
    )
    s = process.time_of(
        angles[0] + (angles[1] - angles[0]) * torch.tensor([0.1, 0.5, 0.2], dtype=torch.float64)
    )
    x = torch.tensor([[0.3], [-1.0], [2.0]], dtype=torch.float64)
    torch.testing.assert_close(process.step(x, data.jump(x, t, s), t, s), data.flow(x, t, s))
    torch.testing.assert_close(data.jump(x, t, t), data(x, t))
    late, early = rectified(process, t), rectified(process, s)
    flow = Gaussian(RectifiedFlow(), 0.4, 0.6)
    x = x / (process.alpha(t) + process.sigma(t))[:, None]
    gain = (1 - flow.spread(early) / flow.spread(late)) / (late - early)
    u = -0.4 + gain[:, None] * (x - (1 - late)[:, None] * 0.4)
    torch.testing.assert_close((x - flow.jump(x, late, early)) / late[:, None], u)


@pytest.mark.parametrize("process", PROCESSES, ids=kind)
@pytest.mark.parametrize("mean", [0.0, 0.7])
def test_the_exact_student_has_no_error(process, mean):
    data = Gaussian(process, mean, 0.5)
    method = MeanFlow(velocity="teacher", distance=Squared())
    parts = method.Nets(answering(process, data.jump), Exact(process, data))
    batch = batch_of(mean + samples(256, d=3))
    assert method.loss(parts, batch, CLOCK).terms["flow"].max() < 1e-18
    parts = method.Nets(
        answering(process, lambda x, t, s: 1.001 * data.jump(x, t, s)), Exact(process, data)
    )
    assert method.loss(parts, batch, CLOCK).terms["flow"].max() > 1e-8


def test_as_s_tends_to_t_it_is_flow_matching():
    """s = t: the squared error of noise - x0 in rectified flow, row by row."""
    process = RectifiedFlow()
    student = Denoiser(JumpGain(process), process, Flow())
    method = MeanFlow(equal=1.0, distance=Squared())
    losses = method.loss(method.Nets(student, None), batch_of(samples(64)), CLOCK)
    batch = batch_of(samples(64))
    t = method.density(process, batch.draws).clamp(process.t_min, process.t_max)
    method.target_density(process, batch.draws), batch.draws.uniform()
    noise = batch.noise()
    x_t = process.add_noise(batch.data, noise, t)
    u = student.network(x_t, t, Cond())
    torch.testing.assert_close(
        losses.terms["flow"], (u - (noise - batch.data)).square().mean(1), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize(
    ("method", "process", "tolerance"),
    [
        (MeanFlow(distance=Squared()), RectifiedFlow(), 0.05),
        (MeanFlow(velocity="teacher", distance=Squared()), VE, 0.03),
    ],
    ids=["data", "teacher"],
)
def test_training_reaches_the_exact_map(method, process, tolerance):
    """By value: 8 jumps and the one over the whole range, within a few hundredths of the sample's
    size.
    """
    assert_reaches_the_exact_map(method, process, tolerance)


@pytest.mark.parametrize(("g", "mix", "w"), [(2.0, 0.5, 1.0), (2.5, 0.92, 0.2), (3.0, 0.0, 3.0)])
def test_the_guidance_that_is_trained_in(g, mix, w):
    """The published pairs (w, mix); at the fixed point u = mixed the effective scale is w/(1 - mix)
    = g.
    """
    method = MeanFlow(guidance=GuidanceRange(g, g), mix=mix)
    assert g * (1 - mix) == pytest.approx(w)
    labels = torch.tensor([0, 1, 2])
    cond = Cond({"label": labels}, {"label": torch.full((3,), 2)})
    data, null = 1.0, 0.4
    guided = null + g * (data - null)

    class Student(torch.nn.Module):
        def forward(self, x, t, cond, s=None):
            told = (cond["label"] != 2)[:, None]
            return torch.where(told, torch.full_like(x, guided), torch.full_like(x, null))

    x = torch.zeros(3, 1)
    x0 = torch.full((3, 1), data)
    t, scale = rows(1.0, 3), rows(g, 3)
    found = method.clean(method.Nets(Student(), None), x, t, x0, cond, scale)
    # Without a label (row 2) the plain sample; with one, what the student says already.
    torch.testing.assert_close(
        found, torch.tensor([[guided], [guided], [data]], dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_the_students_own_answers_are_those_at_one_time():
    """w x0 + mix u(x, t, t) + (1 - w - mix) u_null(x, t, t): s = t in both."""

    def answer(x, t, cond, s):
        told = cond["label"] != 2
        return torch.where(told, t + 10 * s, 3 * t - 7 * s)[:, None].expand_as(x)

    method = MeanFlow(guidance=GuidanceRange(2.5, 2.5), mix=0.6)
    t, x0 = torch.tensor([0.01, 0.5, 3.0, 70.0], dtype=torch.float64), samples(4, d=2)
    student = net(VE, answer, ("label", "s"))
    found = method.clean(
        method.Nets(student, None), torch.zeros(4, 2), t, x0, labels(4), rows(2.5, 4)
    )
    at = t[:, None]
    torch.testing.assert_close(
        found, 1.0 * x0 + 0.6 * (11 * at) - 0.6 * (-4 * at), rtol=1e-6, atol=1e-6
    )


def test_the_students_own_answers_have_no_dropout():
    student = Denoiser(Masked(lambda x, t, s: torch.ones_like(x)), VE, SamplePrediction())
    method = MeanFlow(guidance=GuidanceRange(2.0, 2.0), mix=0.5)
    one = torch.ones(64, 1, dtype=torch.float64)
    found = method.clean(
        method.Nets(student, None), 0 * one, one[:, 0], one, labels(64), rows(2.0, 64)
    )
    torch.testing.assert_close(found, one)
    assert student.network.drop.training


def test_a_guided_teacher_is_mixed_in_the_g_form():
    class Labelled(torch.nn.Module):
        inputs = ("label",)

        def forward(self, x, t, cond, s=None):
            return torch.where((cond["label"] == 9)[:, None], 0.0, 1.0).to(x).expand_as(x)

    teacher = Denoiser(Labelled(), VE, SamplePrediction())

    method = MeanFlow(velocity="teacher", guidance=GuidanceRange(3.0, 3.0))
    cond = Cond({"label": torch.arange(2)}, {"label": torch.full((2,), 9)})
    x0 = method.clean(
        method.Nets(None, teacher),
        torch.zeros(2, 1),
        rows(1.0, 2),
        torch.zeros(2, 1),
        cond,
        rows(3.0, 2),
    )
    torch.testing.assert_close(x0, torch.full((2, 1), 3.0, dtype=torch.float64))


def test_guidance_needs_a_teacher_that_knows_no_label():
    assert_guides_only_what_knows_no_label(MeanFlow(), MeanFlow(guidance=GuidanceRange(2.0, 2.0)))


def test_labels_are_dropped_only_where_the_data_are_guided():
    seen = []

    def student(x, t, cond, s=None):
        seen.append(cond["label"])
        return 0.5 * x

    class Student(torch.nn.Module):
        inputs = ("label", "s")

        def forward(self, x, t, cond, s=None):
            return student(x, t, cond, s)

    x0 = samples(512)
    cond = Cond(
        {"label": torch.zeros(512, dtype=torch.long)}, {"label": torch.ones(512, dtype=torch.long)}
    )
    made = Denoiser(Student(), VE, Edm())
    for options, share in (
        ({}, 0.0),
        ({"guidance": GuidanceRange(2.0, 2.0), "label_dropout": 0.5}, 0.5),
    ):
        seen.clear()
        method = MeanFlow(**options)
        method.loss(method.Nets(made, None), Batch(cond, Draws(0, range(512)), (1,), x0), CLOCK)
        assert seen[-1].double().mean().item() == pytest.approx(share, abs=0.07)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_exact_student_samples_the_flow_at_any_number_of_steps(steps):
    data = Gaussian(VE, 0.0, 0.5)
    sampler = MeanFlow().sampler(CLOCK).with_steps(steps)
    noise = torch.randn(64, 3, dtype=torch.float64)
    made = sampler(answering(VE, data.jump), VE, noise, Cond(), Draws(0, range(64)))
    ends = [torch.full((64,), u, dtype=torch.float64) for u in (VE.t_max, VE.t_min)]
    torch.testing.assert_close(made, data.flow(VE.prior(noise), *ends))


def test_the_power_weight():
    """power 0: the plain sum; power 1: the gradient's length 2√S/(S + c) is at most 1/√c; the value
    is S/(S + c)^p.
    """
    a, b = (
        torch.randn(2, 64, 5, dtype=torch.float64)
        * torch.logspace(-4, 2, 64, dtype=torch.float64)[:, None]
    )
    square = (a - b).square().sum(1)
    torch.testing.assert_close(AdaptivePower(0.0)(a, b), square)
    a.requires_grad_()
    loss = AdaptivePower(1.0, 0.01)(a, b)
    torch.testing.assert_close(loss, square / (square + 0.01))
    loss.sum().backward()
    length = a.grad.norm(dim=1)
    torch.testing.assert_close(length, 2 * square.sqrt() / (square + 0.01))
    assert length.max() <= 10


def test_targets_carry_no_gradient():
    network = JumpGain(VE)
    method = MeanFlow(velocity="teacher", distance=Squared(), density=LogitNormal(0.0, 0.5))
    made = torch.nn.Linear(1, 1).double()
    parts = method.Nets(Denoiser(network, VE, Edm()), Exact(VE, lambda x, t: made(x)))
    losses = method.loss(parts, batch_of(samples(16)), CLOCK)
    losses.terms["flow"].sum().backward()
    assert made.weight.grad is None
    grads = [p.grad.clone() for p in network.parameters()]
    # Only the first pass learns: the gradient is that of 2 <error, jump>/τ with the error a number.
    network.zero_grad()
    batch = batch_of(samples(16))
    t = method.density(VE, batch.draws).clamp(VE.t_min, VE.t_max)
    s = torch.minimum(method.target_density(VE, batch.draws).clamp(min=VE.t_min), t)
    s = torch.where(batch.draws.uniform() < 0.25, t, s)
    x_t = VE.add_noise(batch.data, batch.noise(), t)
    jump, error = flow_error(Forward(), parts.student, Point(x_t, t, s), made(x_t).detach(), Cond())
    (2 * error * jump / rectified(VE, t)[:, None]).sum().backward()
    for a, p in zip(grads, network.parameters()):
        torch.testing.assert_close(a, p.grad, rtol=1e-6, atol=1e-9)


def test_options():
    with pytest.raises(ValueError, match="velocity=data"):
        MeanFlow(velocity="teacher", mix=0.5)
    for wrong in ({"mix": 1.0}, {"equal": 1.5}, {"velocity": "self"}):
        with pytest.raises(ValueError, match="1 validation error"):
            Method.parse({"kind": "mean_flow", **wrong})
    assert MeanFlow(guidance=GuidanceRange(2.0, 2.0)).student_guidance().kind == "fixed"
    assert math.isclose(MeanFlow().sampler(CLOCK).times(VE, 2)[1].item(), 0.99, abs_tol=0.01)
