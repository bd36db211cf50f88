"""Every method that asks a teacher learns a guided one: by value, against a teacher that is itself
the guided one.

For N(mean of the label, std²) the guided answer is that of N(m_null + g (m - m_null), std²).
"""

import dataclasses

import pytest
import torch
from tests.methods.students import MEANS, labels, samples
from tests.oracles import Gaussian, batch_of
from tests.stand_ins import net

from fewstep.contracts.guided import guided
from fewstep.diffusion.densities import LogNormal
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.process import RectifiedFlow, VarianceExploding
from fewstep.diffusion.solvers import Euler
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.method import Clock
from fewstep.methods.align_your_flow import AlignYourFlow
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.methods.consistency_trajectory import ConsistencyTrajectory
from fewstep.methods.continuous_consistency import ContinuousConsistency
from fewstep.methods.diffusion import Diffusion
from fewstep.methods.dmd2 import DMD2
from fewstep.methods.easy_consistency import EasyConsistency
from fewstep.methods.guided_distillation import GuidedDistillation
from fewstep.methods.invertible_consistency import InvertibleConsistency
from fewstep.methods.mean_flow import MeanFlow
from fewstep.methods.multi_boundary import MultiBoundary
from fewstep.methods.progressive import Progressive
from fewstep.methods.shortcut import Shortcut
from fewstep.methods.truncated_consistency import TruncatedConsistency
from fewstep.models.adapters import FullCopy

CASES = {
    "align_your_flow": lambda g: AlignYourFlow(guidance=g),
    "lagrangian": lambda g: AlignYourFlow(side="lagrangian", guidance=g),
    "consistency_distillation": lambda g: ConsistencyDistillation(guidance=g),
    "consistency_trajectory": lambda g: ConsistencyTrajectory(guidance=g, denoising=0.0),
    "continuous_consistency": lambda g: ContinuousConsistency(guidance=g, adaptive=False),
    "dmd2": lambda g: DMD2(guidance=g, gan=0.0, gan_fake=0.0, density=LogNormal(1.0, 0.5)),
    "easy_consistency": lambda g: EasyConsistency(solver=Euler(), guidance=g),
    "guided_distillation": lambda g: GuidedDistillation(guidance=g),
    "mean_flow": lambda g: MeanFlow(velocity="teacher", guidance=g),
    "progressive": lambda g: Progressive(start=8, end=2, guidance=g),
    "shortcut": lambda g: Shortcut(velocity="teacher", intervals=8, guidance=g),
    "truncated_consistency": lambda g: TruncatedConsistency(
        easy=EasyConsistency(solver=Euler(), guidance=g), share=0.0
    ),
}
CLOCK, ROWS = Clock(40, 100, 64), 64


def scaled(process, scale, reads):
    """The ideal denoiser under guidance, number or one per row. It may read the scale and s."""

    def function(x, t, cond, s):
        g = scale if isinstance(scale, float) else scale[:, None]
        mean = MEANS[2] + g * (MEANS[cond["label"]] - MEANS[2])[:, None]
        return Gaussian(process, mean, 0.5)(x, t)

    return net(process, function, ("label", *reads))


def student(process, reads):
    """Some answer, which depends on the scale where it is told one."""

    def function(x, t, cond, s):
        told = 0.1 * cond["guidance"][:, None] if "guidance" in reads else 0.0
        return 0.4 * x + told

    return net(process, function, ("label", "s", *reads))


def loss_of(method, process, teacher, reads=()):
    """The student's loss per row."""
    one = student(process, reads)
    given = {"student": one, "teacher": teacher}
    for field in dataclasses.fields(method.Nets):
        if field.name != "told":
            given.setdefault(field.name, one)
    nets = method.Nets(**given)
    torch.manual_seed(0)
    (loss,) = (u.loss for u in method.updates(CLOCK) if "student" in u.trains)
    return sum(loss(nets, batch_of(samples(ROWS), 5, labels(ROWS)), CLOCK).terms.values())


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
@pytest.mark.parametrize("process", [VarianceExploding(), RectifiedFlow()], ids=["ve", "flow"])
def test_one_scale_is_learned(make, process):
    found = loss_of(make(GuidanceRange(3.0, 3.0)), process, scaled(process, 1.0, ()))
    guided = loss_of(make(None), process, scaled(process, 3.0, ()))
    torch.testing.assert_close(found, guided, rtol=1e-4, atol=1e-5)
    plain = loss_of(make(None), process, scaled(process, 1.0, ()))
    assert (found - plain).abs().max() > 1e-3 * plain.abs().max()


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_a_range_is_learned_row_by_row_and_told_to_the_student(make):
    """The same as from a teacher that reads the scale."""
    process, span = VarianceExploding(), GuidanceRange(1.0, 4.0, embed=True)
    scale = span.scale(batch_of(samples(ROWS), 5).draws.fork("guidance"))
    assert scale.min() >= 1
    assert scale.max() - scale.min() > 2

    def told(x, t, cond, s):
        assert torch.equal(cond["guidance"], scale)
        mean = MEANS[2] + scale[:, None] * (MEANS[cond["label"]] - MEANS[2])[:, None]
        return Gaussian(process, mean, 0.5)(x, t)

    method = make(span)
    found = loss_of(method, process, scaled(process, 1.0, ()), ("guidance",))
    reader = net(process, told, ("label", "guidance"))
    if isinstance(method, Progressive):
        return  # whose first teacher reads its scale only where `told` says so
    torch.testing.assert_close(
        found, loss_of(method, process, reader, ("guidance",)), rtol=1e-4, atol=1e-5
    )


def test_the_denoising_term_of_a_guided_trajectory_learns_the_teacher():
    """Not the data, which know no guidance: the exact student has no error."""
    process, method = VarianceExploding(), ConsistencyTrajectory(guidance=GuidanceRange(3.0, 3.0))
    exact, plain = scaled(process, 3.0, ("s",)), scaled(process, 1.0, ())
    batch = batch_of(samples(ROWS), 5, labels(ROWS))
    terms = method.loss(method.Nets(exact, exact, plain), batch, CLOCK).terms
    assert terms["denoising"].max() < 1e-6


def test_progressive_doubles_in_the_first_round_and_keeps_it_in_the_others():
    process, method = VarianceExploding(), CASES["progressive"](GuidanceRange(3.0, 3.0))
    teacher, one = scaled(process, 1.0, ()), student(process, ())
    batch = lambda: batch_of(samples(ROWS), 5, labels(ROWS))  # noqa: E731
    clock = CLOCK._replace(phase=1)
    later = method.loss(method.Nets(one, teacher), batch(), clock).terms["progressive"]
    plain = CASES["progressive"](None).loss(method.Nets(one, teacher), batch(), clock)
    assert torch.equal(later, plain.terms["progressive"])
    ranged = CASES["progressive"](GuidanceRange(1.0, 4.0, embed=True))
    seen = []
    reader = net(
        process, lambda x, t, cond, s: seen.append(cond["guidance"]) or x, ("label", "guidance")
    )
    ranged.loss(method.Nets(student(process, ("guidance",)), reader, True), batch(), CLOCK)
    assert {len(told) for told in seen} == {ROWS}


def test_the_fake_denoiser_reads_the_scale_too():
    model = guided(Guidance("doubled", 1.0, 8.0))
    method = DMD2(guidance=GuidanceRange(1.0, 4.0, embed=True))
    nets = method.build_nets(model, FullCopy().clones(model.denoiser))
    assert "guidance" in nets.fake.inputs
    assert "guidance" in nets.student.inputs


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (lambda: EasyConsistency(guidance=GuidanceRange(3.0, 3.0)), "without a solver"),
        (lambda: MultiBoundary(solver=None, guidance=GuidanceRange(3.0, 3.0)), "without a solver"),
        (
            lambda: ContinuousConsistency(velocity="data", guidance=GuidanceRange(3.0, 3.0)),
            "velocity=teacher",
        ),
    ],
)
def test_guidance_without_a_teacher_is_refused(method, says):
    with pytest.raises(ValueError, match=says):
        method()


def test_a_method_in_a_method_has_its_guidance():
    model = guided(Guidance("doubled", 1.0, 8.0, 3.0))
    three = GuidanceRange(3.0, 3.0)
    truncated = TruncatedConsistency(easy=EasyConsistency(solver=Euler())).towards(model)
    assert truncated.easy.guidance == three
    assert truncated.student_guidance().default == 3.0
    invertible = InvertibleConsistency(cycle=0.0).towards(model)
    assert invertible.reverse.guidance == three
    with pytest.raises(ValueError, match="cycle=0"):
        InvertibleConsistency().towards(model)


def test_the_student_of_a_student_keeps_its_scale():
    model = guided(Guidance("fixed", 3.0, 3.0, 3.0))
    found = ConsistencyDistillation().towards(model)
    assert found.guidance == GuidanceRange()
    assert found.student_guidance(model.guidance) == model.guidance
    with pytest.raises(ValueError, match="guidance 3 and cannot be guided again"):
        ConsistencyDistillation(guidance=GuidanceRange(2.0, 2.0)).towards(model)


def test_diffusion_goes_on_with_the_models_scales():
    own = Guidance("doubled", 1.0, 20.0, 7.5)
    assert Diffusion().student_guidance(own) == own
    assert Diffusion(label_dropout=0.0).student_guidance(own).kind == "none"
    with pytest.raises(ValueError, match="reads its guidance"):
        Diffusion().towards(guided(Guidance("input", 1.0, 5.0, 1.0), told=True))
