"""Latent consistency distillation: a guided Gaussian teacher is the exact teacher of another
Gaussian.
"""

import pytest
import torch
from tests.diffusion.cases import close, every, f64, rows
from tests.methods.chains import PROCESSES, TABLE, Chain, descend
from tests.oracles import Gaussian, batch_of
from tests.stand_ins import net
from tests.test_contracts import TINY

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.parameterization import (
    CmBoundary,
    ConsistencyBoundary,
    Epsilon,
    Flow,
    LcmBoundary,
)
from fewstep.diffusion.process import RectifiedFlow, VarianceExploding, VariancePreservingTable
from fewstep.diffusion.samplers import Renoise
from fewstep.diffusion.types import per_sample
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.losses import Huber, Squared
from fewstep.learning.method import Clock
from fewstep.methods.latent_consistency import LatentConsistency, boundary_of
from fewstep.models.adapters import FullCopy
from fewstep.models.source import Fresh
from fewstep.models.space import image_space

CLOCK = Clock(0, 100, 64)
STD, MEAN, NULL_MEAN = 0.5, 0.3, -0.1  # of the data with a label, and of all data
CUT = VariancePreservingTable(t_min=19.0)
RANGE = GuidanceRange(1.0, 5.0, embed=True)


def labels(n):
    """A condition with a null, as guidance needs it."""
    one = torch.ones(n, dtype=torch.long)
    return Cond({"label": one}, {"label": 0 * one})


def teacher(process):
    """E[x0 | x_t] of N(MEAN, STD²), without the label that of N(NULL_MEAN, STD²)."""

    def answer(x_t, t, cond, s):
        mean = torch.where(cond["label"] == 1, f64(MEAN), f64(NULL_MEAN)).view(-1, 1)
        return Gaussian(process, mean, STD)(x_t, t)

    return net(process, answer, ("label",))


def guided_mean(g):
    return NULL_MEAN + g * (MEAN - NULL_MEAN)


def best(method, process):
    """The student at zero loss: all guided steps that are left, for the g that it is told."""
    grid = method.times(process, method.bins)

    def answer(x_t, t, cond, s):
        data = Gaussian(process, guided_mean(cond["guidance"].view(-1, 1)), STD)
        return Chain(data, grid).landed(x_t, t, rows(process.t_min, len(t)))

    return net(process, answer, ("guidance",))


def batch(n, seed=0, size=1):
    x0 = MEAN + STD * torch.randn(n, size, generator=torch.Generator().manual_seed(seed)).double()
    return batch_of(x0, seed, labels(n))


@every("process", PROCESSES)
@pytest.mark.parametrize("distance", [Huber(), Squared()])
def test_the_chain_of_guided_steps_has_zero_loss_for_every_scale(process, distance):
    method = LatentConsistency(guidance=RANGE, distance=distance)
    student = best(method, process)
    losses = method.loss(method.Nets(student, student, teacher(process)), batch(512), CLOCK)
    assert losses.terms["consistency"].abs().max() < 1e-20
    off = net(process, lambda *a: student(*a) + 1e-3)
    losses = method.loss(method.Nets(off, student, teacher(process)), batch(512), CLOCK)
    assert losses.terms["consistency"].min() > 1e-7


def test_training_reaches_the_guided_chain():
    """f = a_t x + b_t + c_t (g - 3): every coefficient has a known optimum, since the guided mean
    is linear in g.

    The loss there is zero, so gradients vanish sample by sample and Adam with a falling rate ends
    at the optimum.
    """
    process = VarianceExploding()
    method = LatentConsistency(bins=4, guidance=RANGE, distance=Squared(), target_decay=0.0)
    grid = method.times(process, 4)
    table = torch.nn.Parameter(f64(0.3, 0.0, 0.0).repeat(4, 1))

    def answer(x_t, t, cond, s):
        index = (grid[None] - t[:, None]).abs().argmin(1)
        a, b, c = torch.cat([table, f64(1, 0, 0)[None]])[index].T
        return per_sample(a, x_t) * x_t + (b + c * (cond["guidance"] - 3)).view(-1, 1)

    student = net(process, answer, ("guidance",))
    nets = method.Nets(student, student, teacher(process))
    descend(
        [table],
        lambda k: method.loss(nets, batch(64, k), CLOCK).terms["consistency"].mean(),
        300,
        0.04,
    )
    gain = Chain(Gaussian(process, 0.0, STD), grid).gain(grid[:-1], rows(process.t_min, 4))
    expected = torch.stack(
        [gain, (1 - gain) * guided_mean(3), (1 - gain) * (MEAN - NULL_MEAN)], dim=1
    )
    close(table.detach(), expected, rtol=0, atol=1e-3)


def test_every_row_has_its_own_scale_and_both_sides_are_told_the_same():
    process, told = VarianceExploding(), []

    def answer(x_t, t, cond, s):
        told.append(cond["guidance"])
        return x_t

    method = LatentConsistency(guidance=GuidanceRange(3.0, 15.0, embed=True))
    method.loss(
        method.Nets(net(process, answer), net(process, answer), teacher(process)),
        batch(4096),
        CLOCK,
    )
    assert torch.equal(*told)
    assert 3 <= told[0].min() < 3.02
    assert 14.98 < told[0].max() < 15
    assert told[0].mean() == pytest.approx(9, abs=4 * 12 / (12 * 4096) ** 0.5)


def test_the_goal_carries_no_gradient():
    process = VarianceExploding()
    weights = [torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(3)]
    nets = [net(process, lambda x, t, cond, s, w=w: w * x, ("label",)) for w in weights]
    method = LatentConsistency()
    method.loss(method.Nets(*nets), batch(64), CLOCK).terms["consistency"].sum().backward()
    assert weights[0].grad != 0
    assert weights[1].grad is None
    assert weights[2].grad is None


def test_the_goal_is_the_targets_answer_at_the_lower_end_of_the_guided_step():
    """Three different networks: jump = 0.5 x_t, goal = 1 + 0.25 x_s, x_s the step towards the
    guided mean.
    """
    process, seen = VarianceExploding(), []
    method = LatentConsistency(bins=12, guidance=RANGE, distance=Squared())
    student = net(
        process,
        lambda x, t, cond, s: seen.append((x, t, cond["guidance"])) or 0.5 * x,
        ("guidance",),
    )
    target = net(
        process,
        lambda x, t, cond, s: seen.append((x, t, cond["guidance"])) or 1 + 0.25 * x,
        ("guidance",),
    )
    losses = method.loss(method.Nets(student, target, teacher(process)), batch(200), CLOCK)
    (x_t, t, g), (x_s, s, _) = seen
    assert (t > s).all()
    mean = guided_mean(g)[:, None]
    gain = Gaussian(process, 0.0, STD).step_gain(t, s)[:, None]
    close(x_s, mean + gain * (x_t - mean), rtol=1e-9, atol=1e-12)
    close(losses.terms["consistency"], (0.5 * x_t - 1 - 0.25 * x_s).square()[:, 0])


# Networks


def built(method, process=VarianceExploding(), parameterization=None, null=True, classes=10):  # noqa: B008
    options = {} if parameterization is None else {"parameterization": parameterization}
    model = Fresh(network=TINY, process=process, null=null, **options).load(
        image_space((1, 8, 8), classes), seed=0
    )
    with torch.no_grad():
        for i, parameter in enumerate(model.denoiser.parameters()):
            parameter += 0.05 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(i)
            )
    return model, method.build_nets(model, FullCopy().clones(model.denoiser))


@pytest.mark.parametrize(
    ("process", "parameterization", "boundary"),
    [
        (VarianceExploding(), None, CmBoundary()),
        (RectifiedFlow(), Flow(), ConsistencyBoundary(Flow())),
        (TABLE, Epsilon(), LcmBoundary(Epsilon())),
        (CUT, Epsilon(), ConsistencyBoundary(Epsilon())),
    ],
)
def test_the_student_is_the_teacher_as_a_consistency_function_whatever_it_is_told(
    process, parameterization, boundary
):
    """The embedding of g is zero at first, and the teacher has none; at t_min the student is the
    identity.
    """
    model, nets = built(LatentConsistency(), process, parameterization)
    assert nets.student.parameterization == nets.target.parameterization == boundary
    assert "guidance" in nets.student.inputs
    assert "guidance" not in nets.teacher.inputs
    cond = model.conditioner({"label": torch.arange(4)})
    x, t = torch.randn(4, 1, 8, 8), rows((process.t_min + process.t_max) / 3, 4)
    plain = FullCopy().clones(model.denoiser)("plain", parameterization=boundary)
    for g in (1.0, 4.0):
        told = cond.with_values(guidance=rows(g, 4))
        assert torch.equal(nets.student(x, t, told), plain(x, t, cond))
        assert torch.equal(nets.student(x, rows(process.t_min, 4), told), x)
    torch.nn.init.normal_(nets.student.network.extra_embed["guidance"].linear.weight)
    said = [nets.student(x, t, cond.with_values(guidance=rows(g, 4))) for g in (1.0, 4.0)]
    assert torch.equal(nets.student(x, t, cond), said[0])  # a scale that nobody names is 1
    assert not torch.equal(said[0], said[1])


def test_the_released_boundary_is_for_a_network_of_a_whole_table():
    """A table that is cut off has the general one; a consistency function stays what it is."""
    output = torch.nn.Identity()
    assert boundary_of(Denoiser(output, TABLE, Epsilon())) == LcmBoundary(Epsilon())
    assert boundary_of(Denoiser(output, CUT, Epsilon())) == ConsistencyBoundary(Epsilon())
    assert boundary_of(
        Denoiser(output, TABLE, Epsilon(), own=VarianceExploding())
    ) == ConsistencyBoundary(Epsilon())
    assert boundary_of(Denoiser(output, TABLE, CmBoundary())) == CmBoundary()
    for boundary in (LcmBoundary(), ConsistencyBoundary(Epsilon())):
        end = boundary(CUT, f64(19))
        assert (end.skip.item(), end.out.item()) == (1, 0)


def test_the_released_boundary():
    skip = LcmBoundary()(TABLE, f64(0, 1, 19, 999)).skip - 0
    of = Epsilon()(TABLE, f64(0, 1, 19, 999)).skip
    c = f64(1, 2.49377e-3, 6.92516e-6, 2.505e-9)
    tau = f64(0, 10, 190, 9990)
    close(skip, c + tau / (tau**2 + 0.25).sqrt() * of, rtol=1e-5)


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, [999]),
        (2, [999, 499]),
        (4, [999, 759, 499, 259]),
        (8, [999, 879, 759, 639, 499, 379, 259, 139]),
    ],
)
def test_the_sampler_walks_the_published_indices(n, expected):
    method = LatentConsistency()
    assert method.times(TABLE, 50).tolist() == [*range(999, 0, -20), 0]
    assert method.sampler(CLOCK).times(TABLE, n).tolist() == [*expected, TABLE.t_data]


@pytest.mark.parametrize(
    ("bins", "expected"),
    [(1, [999]), (2, [999, 499]), (3, [999, 666, 332]), (5, [999, 799, 599, 399])],
)
def test_a_coarse_grid_has_a_sampler_that_fits(bins, expected):
    """Four steps, or as many as the grid has intervals: 999, 666, 332, 0 is the whole grid of
    three.
    """
    asked = []
    student = net(
        TABLE, lambda x, t, cond, s: asked.append(t[0].item()) or torch.full_like(x, len(asked))
    )
    sampler = LatentConsistency(bins=bins).sampler(CLOCK)
    x = sampler(student, TABLE, torch.randn(2, 1), Cond(), Draws(0, range(2)))
    assert asked == expected
    assert sampler.evaluations == len(expected)
    assert (x == len(expected)).all()  # the last jump ends there


def test_sampling_keeps_the_marginals():
    """From the exact marginal at t_max the exact consistency function samples N(alpha mean,
    spread²) at t_min.
    """
    data = Gaussian(TABLE, MEAN, STD)
    end = rows(TABLE.t_min, 100_000)

    def answer(x_t, t, cond, s):
        return data.flow(x_t, t, end)

    top = rows(TABLE.t_max, 100_000)
    noise = (
        data.process.alpha(top)[:, None] * MEAN
        + data.spread(top)[:, None] * torch.randn(100_000, 1).double()
    )
    sampler = LatentConsistency().sampler(CLOCK)
    assert isinstance(sampler, Renoise)
    x = sampler(net(TABLE, answer), TABLE, noise, Cond(), Draws(0, range(100_000)))
    spread = data.spread(end)[0].item()
    assert x.std().item() == pytest.approx(spread, abs=4 * spread / (2 * 100_000) ** 0.5)
    assert x.mean().item() == pytest.approx(
        TABLE.alpha(end)[0].item() * MEAN, abs=4 * spread / 100_000**0.5
    )


# Options


def test_what_the_students_guidance_means():
    assert LatentConsistency().student_guidance() == Guidance("input", 1, 5, 3)
    hidden = LatentConsistency(guidance=GuidanceRange(3.0, 15.0))
    assert hidden.student_guidance() == Guidance("fixed", 3, 15, 9)
    assert "guidance" not in built(hidden)[1].student.inputs
    assert LatentConsistency(guidance=GuidanceRange()).student_guidance() == Guidance()


def test_a_teacher_without_an_unconditional_side_can_only_be_taken_as_it_is():
    with pytest.raises(ValueError, match="no label"):
        built(LatentConsistency(), null=False)
    with pytest.raises(ValueError, match="no label"):
        built(LatentConsistency(guidance=GuidanceRange(3.0, 3.0)), classes=0)
    built(LatentConsistency(guidance=GuidanceRange()), null=False)


def test_a_teacher_that_reads_its_guidance_is_told_and_passes_the_input_on():
    model, _ = built(LatentConsistency(guidance=GuidanceRange()), null=False)
    model.denoiser = FullCopy().clones(model.denoiser)("told", inputs={"guidance"})
    with pytest.raises(ValueError, match="embed"):
        GuidanceRange(2.0, 4.0).inputs(model)
    assert GuidanceRange(2.0, 4.0, embed=True).inputs(model) == {"guidance"}
    seen = []
    told = net(
        VarianceExploding(), lambda x, t, cond, s: seen.append(cond["guidance"]) or x, ("guidance",)
    )
    one = batch(8)
    denoise, cond = GuidanceRange(2.0, 4.0, embed=True)(told, one.cond, one.draws)
    denoise(one.data, rows(1, 8), one.cond)
    assert torch.equal(seen[0], cond["guidance"])
    assert len(seen[0]) == 8  # not a doubled batch


def test_options_are_checked():
    with pytest.raises(ValueError, match="above"):
        GuidanceRange(3.0, 2.0)
