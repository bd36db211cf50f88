"""What the health numbers mean, on networks whose samples are known."""

import pytest
import torch
from tests.training.tiny import data, model

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.samplers import Ode, Renoise
from fewstep.learning.method import Clock
from fewstep.methods.diffusion import Diffusion
from fewstep.models.adapters import FullCopy
from fewstep.models.bundle import DiffusionModel
from fewstep.models.codec import Pixels
from fewstep.training.health import IMAGES, SEED, Health

CLOCK = Clock(0, 1, 8)
TEACHER = Ode(steps=3)


class Sampled(Diffusion):
    """Its network is sampled as a test says."""

    def sampler(self, clock, net="student"):
        return self.wanted


def numbers(student_seed, sampler):
    """Health's numbers of a network against a teacher, and the samples of both from health's
    noises.
    """
    teacher, student = model(0), model(student_seed).denoiser
    shape = data()(0, range(1), Draws(0, range(1))).shape
    bundle = DiffusionModel(teacher.denoiser, Pixels().build(), teacher.conditioner, shape, TEACHER)
    method = Sampled()
    object.__setattr__(method, "wanted", sampler)
    nets = method.build_nets(bundle, FullCopy().clones(teacher.denoiser))
    found = Health(method, nets, data(), None, bundle, torch.device("cpu")).measured(
        CLOCK, {"student": student}
    )
    draws = Draws(SEED, range(IMAGES), stream="health")

    def samples(net, by):
        with torch.no_grad():
            return by(
                net, net.process, draws.fork("noise").normal(*shape), Cond(), draws.fork("sampler")
            )

    return found, samples, student, teacher.denoiser


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("sampler", "judged"),
    [
        (Ode(steps=3), Ode(steps=3)),
        (Ode(steps=2), Ode(steps=2)),
        (Renoise(steps=4), Renoise(steps=1)),
    ],
    ids=["ode of the teacher's steps", "ode of fewer", "map"],
)
def test_the_samples_that_are_compared(seed, sampler, judged):
    """A map to the data is judged by one jump, what goes along the ODE by its own steps."""
    found, samples, student, teacher = numbers(seed, sampler)
    x, goal = samples(student, judged), samples(teacher, TEACHER)
    assert found == pytest.approx(
        {
            "health.distance": (x - goal).square().mean().sqrt().item(),
            "health.contrast": (x.flatten(1).std(1).mean() / goal.flatten(1).std(1).mean()).item(),
            "health.diversity": (x.std(0).mean() / goal.std(0).mean()).item(),
        },
        rel=1e-5,
        abs=1e-6,
    )
    assert (found["health.distance"] < 1e-6) == (seed == 0 and judged == TEACHER)
