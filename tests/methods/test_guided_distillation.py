"""Guided distillation against closed forms: of N(mean of the label, std²) the guided answer is that
of N(m_null + g (m - m_null), std²).
"""

import dataclasses

import pytest
import torch
from tests.methods.students import MEANS, labels, samples
from tests.oracles import Gaussian, batch_of
from tests.stand_ins import net

from fewstep.contracts.trial import TINY, digits
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.process import RectifiedFlow, VarianceExploding, VariancePreserving
from fewstep.diffusion.samplers import Ode
from fewstep.diffusion.solvers import Euler
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.method import Clock
from fewstep.methods.guided_distillation import GuidedDistillation
from fewstep.models.source import Fresh

CLOCK, ROWS, SCALE = Clock(0, 100, 64), 64, 3.0


def gaussian(process, scale=1.0, off=0.0):
    """Its answer under a scale of guidance, and `off` beside it."""

    def function(x, t, cond, s):
        mean = MEANS[2] + scale * (MEANS[cond["label"]] - MEANS[2])[:, None]
        return Gaussian(process, mean, 0.5)(x, t) + off

    return net(process, function, ("label",))


def loss_of(student, teacher, method):
    nets = method.Nets(student, teacher)
    batch = batch_of(samples(ROWS), 5, labels(ROWS))
    return method.loss(nets, batch, CLOCK).terms["guidance"], nets, batch


@pytest.mark.parametrize("process", [VarianceExploding(), VariancePreserving(), RectifiedFlow()])
def test_the_guided_teacher_is_the_optimum(process):
    method = GuidedDistillation(guidance=GuidanceRange(SCALE, SCALE))
    teacher = gaussian(process)
    found, _, _ = loss_of(gaussian(process, SCALE), teacher, method)
    plain, _, _ = loss_of(gaussian(process), teacher, method)
    assert found.max() < 1e-6 * plain.max()


@pytest.mark.parametrize("process", [VarianceExploding(), VariancePreserving(), RectifiedFlow()])
def test_another_answer_costs_its_squared_error_in_what_the_network_predicts(process):
    method = GuidedDistillation(guidance=GuidanceRange(SCALE, SCALE))
    student = gaussian(process, SCALE, off=0.3)
    found, nets, batch = loss_of(student, gaussian(process), method)
    again = dataclasses.replace(batch, draws=batch_of(samples(ROWS), 5, labels(ROWS)).draws)
    again.noise()
    t = method.density(process, again.draws)
    expected = 0.3**2 / nets.student.coefficients(t).out ** 2
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-3, atol=1e-6)


def test_it_is_sampled_as_its_teacher():
    model = Fresh(network=TINY).load(digits().space, 0)
    model.sampler = Ode(7, solver=Euler())
    model.guidance = Guidance("doubled", 1.0, 8.0, 2.5)
    method = GuidedDistillation(guidance=None).towards(model)
    assert method.guidance == GuidanceRange(2.5, 2.5)
    assert method.sampler(CLOCK) == model.sampler
    assert method.student_guidance(model.guidance) == Guidance("fixed", 2.5, 2.5, 2.5)
    asked = GuidedDistillation(sample_with=Ode(3)).towards(model)
    assert asked.sampler(CLOCK) == Ode(3)


def test_a_teacher_without_guidance_has_none_to_teach():
    model = Fresh(network=TINY).load(digits().space, 0)
    with pytest.raises(ValueError, match="none to learn"):
        GuidedDistillation(guidance=None).towards(model)
