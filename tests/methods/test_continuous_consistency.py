"""Continuous-time consistency against closed forms: N(mean, std²), every process, the published
TrigFlow form.
"""

import math

import pytest
import torch
from tests.methods.students import (
    MEANS,
    assert_guides_only_what_knows_no_label,
    descend,
    ideal,
    labelled,
    labels,
    samples,
)
from tests.oracles import Gaussian, batch_of
from tests.stand_ins import Answer, Exact, JumpGain, answering
from tests.test_contracts import TINY
from torch import nn

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.densities import LogNormal
from fewstep.diffusion.parameterization import (
    Edm,
    Epsilon,
    Flow,
    LcmBoundary,
    Parameterization,
    SamplePrediction,
    Score,
    Velocity,
)
from fewstep.diffusion.process import (
    RectifiedFlow,
    Trig,
    VarianceExploding,
    VariancePreserving,
    VariancePreservingTable,
)
from fewstep.learning.consistency import jump_and_goal
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.method import Clock, Method
from fewstep.learning.tangent import (
    Difference,
    Point,
    jump_and_rate,
    normalised,
    per_log_ratio,
    trajectory_rate,
)
from fewstep.methods.continuous_consistency import ContinuousConsistency
from fewstep.models.adapters import FullCopy
from fewstep.models.heads import Uncertainty
from fewstep.models.source import Fresh
from fewstep.models.space import image_space

VE = VarianceExploding()
PROCESSES = [VE, VariancePreserving(), VariancePreservingTable(), RectifiedFlow(), Trig()]
LATE, EARLY = Clock(99, 100, 64), Clock(0, 1000, 64)  # warm = 1, and 1/100


def kind(value):
    return type(value).__name__


def exact(process, mean=0.0, std=0.5):
    """The consistency function that ends at the data."""
    data = Gaussian(process, mean, std)
    return lambda x, t, s=None: data.flow(x, t, torch.full_like(t, process.t_data))


def nets(method, student, teacher):
    return method.Nets(student, Uncertainty(), teacher)


@pytest.mark.parametrize("process", PROCESSES, ids=kind)
@pytest.mark.parametrize("mean", [0.0, 0.7])
def test_the_exact_student_does_not_move(process, mean):
    """g = 0 on the teacher's trajectory: 6.3 of the specification in any process."""
    method = ContinuousConsistency(adaptive=False, density=LogNormal(0.0, 1.5))
    data = Gaussian(process, mean, 0.5)
    student, teacher = answering(process, exact(process, mean)), Exact(process, data)
    losses = method.loss(nets(method, student, teacher), batch_of(mean + samples(256, d=3)), LATE)
    assert losses.notes["tangent"].max() < 1e-9
    assert losses.terms["consistency"].max() < 1e-15
    scaled = answering(
        process, lambda x, t, s: exact(process, mean)(x, t) * (1 + 0.01 * process.angle(t))[:, None]
    )
    off = method.loss(nets(method, scaled, teacher), batch_of(samples(64)), LATE)
    assert off.notes["tangent"].max() > 1e-3


@pytest.mark.parametrize("warm", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("process", [VE, Trig(), RectifiedFlow()], ids=kind)
def test_the_tangent_is_the_published_one(process, warm):
    """-cos² (sigma_data F - v) - warm (cos sin x + sigma_data cos sin dF/dt), F of TrigFlow = -F of
    EDM.
    """
    sigma_data, data = 0.5, Gaussian(process, 0.3, 0.4)

    def network(x, t):
        angle = torch.atan2(process.sigma(t), sigma_data * process.alpha(t))
        return torch.tanh(x * (1.5 + torch.sin(angle)[:, None]) + torch.cos(angle)[:, None])

    student = Denoiser(Answer(lambda x, t, s: network(x, t)), process, Edm(sigma_data))
    method = ContinuousConsistency(adaptive=False, warmup=0.5, density=LogNormal(0.0, 1.0))
    clock = Clock(max(0, round(warm * 500_000) - 1), 1_000_000, 64)
    batch = batch_of(samples(64, d=3))
    losses = method.loss(nets(method, student, Exact(process, data)), batch, clock)

    again, trig = batch_of(samples(64, d=3)), Trig(sigma_data, t_min=1e-4)
    t = method.density(process, again.draws).clamp(process.t_min, process.t_max)
    x_own = process.add_noise(again.data, again.noise(), t)
    angle = torch.atan2(process.sigma(t), sigma_data * process.alpha(t))
    sin, cos = torch.sin(angle)[:, None], torch.cos(angle)[:, None]
    x = x_own * (sigma_data / torch.hypot(sigma_data * process.alpha(t), process.sigma(t)))[:, None]
    v = Gaussian(trig, 0.3, 0.4).velocity(x, angle)

    def flipped(x, angle):
        return -torch.tanh(
            x / sigma_data * (1.5 + torch.sin(angle)[:, None]) + torch.cos(angle)[:, None]
        )

    f, bend = torch.func.jvp(flipped, (x, angle), (cos * sin * v, (cos * sin)[:, 0]))
    g = -(cos**2) * (sigma_data * f - v) - warm * (cos * sin * x + sigma_data * bend)
    torch.testing.assert_close(
        losses.notes["tangent"].double(), g.norm(dim=1), rtol=1e-5, atol=2e-6
    )
    torch.testing.assert_close(
        losses.terms["consistency"], normalised(g, 0.1).square().mean(1), rtol=1e-4, atol=1e-9
    )


def test_at_the_beginning_the_student_learns_what_the_teacher_says():
    """warm -> 0: g = cos² (f - D)/sin, so that F is drawn to v/sigma_data; its sign is that of
    descent.
    """
    data = Gaussian(VE, 0.0, 0.5)
    method = ContinuousConsistency(adaptive=False, warmup=1.0, density=LogNormal(0.0, 1.0))
    student = JumpGain(VE)
    made = Denoiser(student, VE, Edm())
    clock = Clock(0, 10**9, 64)
    descend(
        student.parameters(),
        lambda k: (
            method.loss(nets(method, made, Exact(VE, data)), batch_of(samples(256, k), k), clock)
            .terms["consistency"]
            .mean()
        ),
        150,
        1e-2,
    )
    t = torch.tensor([0.3, 1.0, 3.0], dtype=torch.float64)
    one = torch.ones(3, 1, dtype=torch.float64)
    torch.testing.assert_close(made(one, t, Cond()), data(one, t), rtol=0, atol=0.02)


@pytest.mark.parametrize("velocity", ["teacher", "data"])
def test_training_reaches_the_exact_consistency_function(velocity):
    """By value: std/√(std² + t²) for t over two decades. The teacher's answer, D = std²/(std² +
    t²), is far from it.
    """
    data = Gaussian(VE, 0.0, 0.5)
    method = ContinuousConsistency(velocity=velocity, density=LogNormal(-0.5, 1.5))
    network, uncertainty = JumpGain(VE), Uncertainty().double()
    made = Denoiser(network, VE, Edm())
    parts = method.Nets(made, uncertainty, Exact(VE, data))
    steps = 400
    descend(
        [*network.parameters(), *uncertainty.parameters()],
        lambda k: (
            method.loss(parts, batch_of(samples(256, k), k), Clock(k, steps, 256))
            .terms["consistency"]
            .mean()
        ),
        steps,
        1e-2,
    )
    t = torch.tensor([0.1, 0.3, 1.0, 3.0, 10.0], dtype=torch.float64)
    x = VE.sigma(t)[:, None] + 0.5  # of the size of x_t
    off = (made(x, t, Cond()) - exact(VE)(x, t)).abs().max().item()
    assert (data(x, t) - exact(VE)(x, t)).abs().max() > 0.2
    assert off < (0.02 if velocity == "teacher" else 0.04)


def test_a_short_discrete_step_has_the_same_direction():
    """(f(x_t) - f(x_s))/(ln t - ln s) of consistency distillation's two looks tends to the
    derivative (T-23).
    """
    data, student = (
        Gaussian(VE, 0.2, 0.4),
        answering(VE, lambda x, t, s: torch.tanh(x / (1 + t[:, None]))),
    )
    t = torch.tensor([0.05, 0.7, 3.0], dtype=torch.float64)
    x = torch.tensor([[0.4], [-1.0], [2.5]], dtype=torch.float64)
    _, _, rate = jump_and_rate(
        ContinuousConsistency().tangent,
        student,
        Point(x, t),
        trajectory_rate(VE, x, data(x, t), t, per_log_ratio(VE, t)),
        Cond(),
    )
    errors = []
    for h in (1e-2, 1e-3):
        s = t * math.exp(-h)
        jump, goal = jump_and_goal(student, student, x, t, data.flow(x, t, s), s, Cond())
        errors.append(((jump - goal) / h - rate).abs().max().item())
    assert errors[1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)  # of first order


def test_only_the_jump_carries_a_gradient_and_it_is_the_published_one():
    """The gradient in x0 is 2 ĝ/(d sigma_data sin t): in F of TrigFlow -2 ĝ/d, times e^-u."""
    seen = {}

    def answer(x, t, s):
        out = torch.tanh(x)
        if torch.is_grad_enabled():
            seen["out"] = out.requires_grad_()
            out.retain_grad()
        return out

    teacher = nn.Linear(1, 1).double()
    method = ContinuousConsistency(density=LogNormal(0.0, 1.0))
    parts = nets(method, answering(VE, answer), Exact(VE, lambda x, t: teacher(x)))
    parts.uncertainty.embed.linear.bias.data[:] = 0.7
    batch = batch_of(samples(32))
    losses = method.loss(parts, batch, LATE)
    losses.terms["consistency"].sum().backward()
    assert teacher.weight.grad is None
    t = method.density(VE, batch_of(samples(32)).draws)
    sin = t / torch.hypot(t, torch.tensor(0.5))
    size = losses.notes["tangent"].double()
    expected = 2 * size / (size + 0.1) / (0.5 * sin) * math.exp(-0.7)
    torch.testing.assert_close(seen["out"].grad.abs()[:, 0], expected, rtol=1e-5, atol=0)


def test_the_uncertainty_learns_the_logarithm_of_the_loss():
    """The method's loss, over u alone, is smallest at u(t) = ln ℓ(t); there all noise levels weigh
    the same.

    The student is the exact one and 0.02 t: g = 0.02 t/sin t at every sample, so that ℓ is a
    function of t.
    """
    head = Uncertainty().double()
    assert torch.equal(head(torch.tensor([0.1, 1.5])), torch.zeros(2))
    method = ContinuousConsistency(density=LogNormal(0.0, 1.0))
    student = answering(VE, lambda x, t, s: exact(VE)(x, t) + 0.02 * t[:, None])
    parts = method.Nets(student, head, Exact(VE, Gaussian(VE, 0.0, 0.5)))
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=30, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = method.loss(parts, batch_of(samples(256)), LATE).terms["consistency"].mean()
        value.backward()
        return value

    optimizer.step(loss)
    losses = method.loss(parts, batch_of(samples(256)), LATE)
    t = method.density(VE, batch_of(samples(256)).draws)
    g = 0.02 * torch.hypot(t, torch.tensor(0.5))
    expected = 2 * torch.log(g / (g + 0.1))
    torch.testing.assert_close(losses.notes["distance"], torch.exp(expected), rtol=1e-5, atol=0)
    assert expected.max() - expected.min() > 2
    torch.testing.assert_close(head(VE.angle(t)), expected, rtol=0, atol=0.05)
    torch.testing.assert_close(losses.terms["consistency"], 1 + expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_exact_student_of_a_guided_teacher_does_not_move(scale):
    """The consistency function of N(m_null + g (m - m_null), std²); at any other g it moves."""

    def end(data, x, t, s):
        return data.flow(x, t, torch.full_like(t, VE.t_data))

    method = ContinuousConsistency(
        adaptive=False, guidance=GuidanceRange(scale, scale), density=LogNormal(0.0, 1.5)
    )
    batch = batch_of(samples(128, d=3), cond=labels(128))
    parts = nets(method, labelled(VE, end, scale), labelled(VE, ideal))
    assert method.loss(parts, batch, LATE).notes["tangent"].max() < 1e-9
    parts.student = labelled(VE, end, scale + 0.5)
    assert method.loss(parts, batch, LATE).notes["tangent"].max() > 1e-3


def test_both_passes_of_the_student_are_told_the_label():
    """The pass that carries the gradient and the one that is differentiated: in a batch of classes
    0 and 1.
    """
    asked = []

    def answer(data, x, t, s):
        asked.append(data.mean[:, 0])
        return data(x, t)

    method = ContinuousConsistency()
    batch = batch_of(samples(64), cond=labels(64))
    method.loss(nets(method, labelled(VE, answer), labelled(VE, ideal)), batch, LATE)
    assert len(asked) == 2
    for mean in asked:
        torch.testing.assert_close(mean, MEANS[:2].repeat(32))


def test_guidance_needs_a_teacher_that_knows_no_label():
    assert_guides_only_what_knows_no_label(
        ContinuousConsistency(), ContinuousConsistency(guidance=GuidanceRange(2.0, 2.0))
    )


def test_times_stay_in_the_range_of_the_process():
    """Draws below t_min or above t_max are moved there."""
    process, asked = VarianceExploding(0.5, 2.0), []

    def answer(x, t, s):
        asked.append(t.detach())
        return 0.5 * x

    method = ContinuousConsistency(density=LogNormal(0.0, 1.5))
    teacher = Exact(process, Gaussian(process, 0.0, 0.5))
    method.loss(nets(method, answering(process, answer), teacher), batch_of(samples(256)), LATE)
    drawn = torch.exp(1.5 * batch_of(samples(256)).draws.normal().double())
    inside = (drawn > 0.5) & (drawn < 2)
    assert 0.2 < inside.double().mean() < 0.5
    for t in asked:
        torch.testing.assert_close(t[inside], drawn[inside])
        assert set(t[~inside].tolist()) == {0.5, 2.0}


def test_processes_that_meet_agree():
    """The same network and draws seen from VE, VP, rectified flow and TrigFlow: the same
    tangents.
    """
    narrow = VarianceExploding(0.01, 60.0)
    found = []
    for process in (
        narrow,
        *(p.within(narrow) for p in (VariancePreserving(), RectifiedFlow(), Trig(t_min=1e-4))),
    ):
        network = Answer(lambda x, t, s: torch.tanh(x + 0.1 * torch.log(t)[:, None]))
        student = Denoiser(network, narrow, Edm()).under(process)
        method = ContinuousConsistency(adaptive=False, density=LogNormal(-0.5, 1.0))
        losses = method.loss(
            nets(method, student, Exact(process, Gaussian(process, 0.1, 0.4))),
            batch_of(samples(64)),
            LATE,
        )
        found.append(losses.notes["tangent"])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)


def test_differences_can_take_the_place_of_forward_mode():
    data = Gaussian(VE, 0.0, 0.5)
    found = []
    for options in ({}, {"tangent": Difference(1e-5)}):
        method = ContinuousConsistency(adaptive=False, density=LogNormal(0.0, 1.0), **options)
        student = Denoiser(JumpGain(VE), VE, Edm())
        losses = method.loss(nets(method, student, Exact(VE, data)), batch_of(samples(64)), LATE)
        found.append(losses.notes["tangent"])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("prediction", [Edm(), Flow(), Velocity(), Epsilon()], ids=kind)
@pytest.mark.parametrize(
    "process", [VE, VariancePreservingTable(), RectifiedFlow(), Trig()], ids=kind
)
def test_every_prediction_of_noise_is_the_identity_at_the_data(prediction, process):
    """skip = 1 and out = 0 where sigma is 0: the boundary of f needs no parameterization of its own
    (T-07).
    """
    c = prediction(process, torch.tensor([process.t_data], dtype=torch.float64))
    assert (c.skip.item(), c.out.item()) == pytest.approx((1, 0))


@pytest.mark.parametrize(
    "prediction", Parameterization.kinds().values(), ids=Parameterization.kinds()
)
@pytest.mark.parametrize(
    "process", [VE, VariancePreserving(), VariancePreservingTable(), RectifiedFlow()], ids=kind
)
def test_a_network_that_says_x0_itself_is_refused(prediction, process):
    """Nothing ties it to the data: every constant has df/dt = 0."""
    if process == RectifiedFlow() and prediction in (Epsilon, LcmBoundary, Score):
        return  # undefined at pure noise, which is no matter of this method
    model = Fresh(network=TINY, process=process, parameterization=prediction()).load(
        image_space((1, 8, 8)), 0
    )
    if prediction is SamplePrediction:
        with pytest.raises(ValueError, match="sample_prediction is not the identity at the data"):
            ContinuousConsistency().build_nets(model, FullCopy().clones(model.denoiser))
    else:
        ContinuousConsistency().build_nets(model, FullCopy().clones(model.denoiser))


def test_golden_times():
    """The middle time of two steps is at sigma/alpha = 1 up to the end of the range: 1.1 of
    TrigFlow is 0.98.
    """
    grid = ContinuousConsistency().sampler(LATE).times(VE, 2)
    assert grid.tolist() == pytest.approx([80, 0.9876, 0], abs=1e-3)
    assert math.atan(80 / 0.5) == pytest.approx(1.564546, abs=1e-6)
    assert 0.5 * math.tan(1.1) == pytest.approx(0.98238, abs=1e-5)
    assert per_log_ratio(Trig(), torch.tensor([0.3])).item() == pytest.approx(
        math.sin(0.3) * math.cos(0.3)
    )


def test_options():
    with pytest.raises(ValueError, match="velocity=teacher"):
        ContinuousConsistency(velocity="data", guidance=GuidanceRange(2.0, 2.0))
    for wrong in ({"floor": 0}, {"velocity": "student"}, {"warmup": -1}, {"tangent": "backward"}):
        with pytest.raises(ValueError, match="1 validation error"):
            Method.parse({"kind": "continuous_consistency", **wrong})
    assert ContinuousConsistency(guidance=GuidanceRange(2.0, 2.0)).student_guidance().default == 2.0
    assert ContinuousConsistency().student_guidance().kind == "none"
