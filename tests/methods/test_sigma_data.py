"""The spread of the data is what the teacher states; an option only overrides it."""

import pytest
import torch
from tests.diffusion.cases import rows
from tests.methods.students import samples
from tests.oracles import batch_of
from tests.stand_ins import JumpGain

from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.parameterization import Edm, Flow, Velocity
from fewstep.diffusion.process import RectifiedFlow, Trig, VarianceExploding
from fewstep.learning.method import Clock
from fewstep.learning.weights import by_noise, interval_weight, sigma_data_of, weight
from fewstep.methods.continuous_consistency import ContinuousConsistency
from fewstep.methods.moment_matching import MomentMatching

CLOCK, VE = Clock(40, 100, 64), VarianceExploding()


def stated(process=VE, prediction=None):
    return Denoiser(JumpGain(process), process, prediction or Edm(1.0))


@pytest.mark.parametrize(
    ("denoiser", "found"),
    [
        (stated(), 1.0),
        (stated(prediction=Edm(1.0).boundary()), 1.0),
        (stated(Trig(1.0), Velocity()), 1.0),
        (stated(Trig(0.7), Edm(1.0)), 1.0),
        (stated(VE.within(Trig(1.0)), Flow()), 0.5),
        (stated(RectifiedFlow(), Velocity()), 0.5),
        (stated(Trig(1.0), Velocity()).under(VE.within(Trig(1.0))), 1.0),
    ],
)
def test_who_states_it(denoiser, found):
    assert sigma_data_of(denoiser) == found


def test_the_weight_of_an_edm_network():
    """SNR + 1/sigma_data², which is 1/out²."""
    t, denoiser = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64), stated()
    torch.testing.assert_close(weight("karras", denoiser, t), weight("output", denoiser, t))
    assert by_noise("karras", VE, rows(1.0, 1), denoiser).item() == pytest.approx(2.0)
    assert interval_weight("karras", VE, rows(1.0, 1), rows(0.5, 1), denoiser).item() == 2.0
    assert by_noise("karras", VE, rows(1.0, 1)).item() == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("process", "prediction"), [(VE, Edm(1.0)), (Trig(1.0), Edm(1.0)), (Trig(1.0), Velocity())]
)
@pytest.mark.parametrize(
    ("make", "more"),
    [
        (ContinuousConsistency, {"velocity": "data", "adaptive": False}),
        (MomentMatching, {"samples": 4}),
    ],
)
def test_methods_take_it_from_the_teacher(make, more, process, prediction):
    def loss(**options):
        method = make(**more, **options)
        fields = {"student": stated(process, prediction), "uncertainty": None, "teacher": None}
        names = [name for name in fields if name in method.Nets.__dataclass_fields__]
        nets = method.Nets(**{name: fields[name] for name in names})
        batch = batch_of(samples(64))
        return sum(method.loss(nets, batch, CLOCK).terms.values()).detach()

    assert torch.equal(loss(), loss(sigma_data=1.0))
    assert not torch.equal(loss(), loss(sigma_data=0.5))
