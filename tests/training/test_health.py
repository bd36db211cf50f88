"""What the health numbers mean, on networks whose samples are known."""

import pytest
import torch
from tests.training.tiny import Single, config, data, model, trainer

from fewstep.data.digits import Digits
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.samplers import Ode, Renoise
from fewstep.learning.method import Clock
from fewstep.methods.diffusion import Diffusion
from fewstep.models.bundle import DiffusionModel
from fewstep.models.codec import Pixels
from fewstep.run import Run
from fewstep.training.health import IMAGES, SEED, Health
from fewstep.training.log import read_log

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
    ready = Run(Digits(), method).prepared(data().dataset, model=bundle)
    health = Health(method, ready.nets, ready.stream, None, bundle, torch.device("cpu"))
    found = health.measured(CLOCK, {"student": student})
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


def test_it_measures_when_it_is_due_and_adds_to_the_numbers(tmp_path):
    """Of each network the copies that everybody sees at that step."""
    one = trainer(Single(), tmp_path, config(log_every=1))
    health = Health(one.method, one.nets, one.data, None, None, torch.device("cpu"), every=5)
    asked = []
    health.measured = lambda clock, exported: asked.append((clock.step, exported)) or {"mine": 1.0}
    copies = []
    one.fit(lambda seen: copies.append(seen.exported), measures=[health])
    assert [step for step, _ in asked] == [4, 9, 11]
    assert all(exported is copies[step] for step, exported in asked)
    lines = read_log(tmp_path / "log.jsonl")
    assert [line["step"] for line in lines if "mine" in line] == [5, 10, 12]
