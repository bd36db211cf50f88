"""What the health numbers mean, on networks whose samples are known."""

import math

import pytest
import torch
from tests.training.tiny import Single, StopError, config, data, model, stop_at, trainer
from torch import nn

from fewstep.contracts.guided import guided as guided_teacher
from fewstep.contracts.trial import Trial, digits, weights
from fewstep.data.digits import Digits
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.guidance import Guidance, guided
from fewstep.diffusion.samplers import Ode, Renoise
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.method import Clock, Method
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.methods.diffusion import Diffusion
from fewstep.models.bundle import DiffusionModel
from fewstep.models.codec import Pixels
from fewstep.run import Run
from fewstep.training.health import IMAGES, SEED, Health, verdict
from fewstep.training.log import read_log

CLOCK = Clock(0, 1, 8)
TEACHER = Ode(steps=3)
METHODS = [cls for cls in Method.kinds().values() if cls.__module__.startswith("fewstep.methods.")]
LOSS = "health.held_out_loss"


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


@pytest.mark.parametrize("embed", [False, True])
def test_a_guided_student_is_compared_with_the_guided_teacher(embed):
    """And a student that reads its guidance is asked for the middle of its range."""
    teacher = guided_teacher(Guidance("doubled", 1.0, 8.0))
    method = ConsistencyDistillation(guidance=GuidanceRange(2.0, 4.0, embed)).towards(teacher)
    trainer = Run(Digits(), method, trainer=config()).prepared(digits(), model=teacher).trainer
    health = Health(method, trainer.nets, trainer.data, None, teacher, torch.device("cpu"))
    net, process = teacher.denoiser.eval(), teacher.denoiser.process
    draws = Draws(SEED, range(IMAGES), stream="health")
    wanted = teacher.sampler(
        guided(net, 3.0), process, health.noise, health.cond, draws.fork("sampler")
    )
    assert torch.equal(health.goal, wanted)
    told = []
    student = trainer.state.exported("student")
    student.register_forward_pre_hook(lambda module, given: told.append(given[2]))
    health.measured(CLOCK, {"student": student})
    assert [cond.values.get("guidance") is not None for cond in told] == [embed]
    assert not embed or set(told[0]["guidance"].tolist()) == {3.0}


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


def module_modes(trainer):
    nets = trainer.state.modules.values()
    return [[module.training for module in net.modules()] for net in nets]


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_no_network_of_any_method_drops_anything_while_it_is_measured(cls):
    """The numbers are those of the weights alone, whatever the global random state is; behind it
    every module is in the mode in which it was, and no statistics have moved.
    """
    tried = Trial(cls).prepared(batch=16)
    trainer, layers = tried.trainer, []
    for net in trainer.state.modules.values():
        layers += [module for module in net.modules() if isinstance(module, nn.Dropout)]
    for layer in layers:
        layer.p = 0.5
    teacher = tried.model
    teacher.denoiser.train()
    before, trains = module_modes(trainer), weights(trainer)
    clock = trainer.clock(0)
    stream = trainer.data
    exported = {name: trainer.state.exported(name) for name in trainer.state.roles.exports}
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        device = torch.device("cpu")
        health = Health(trainer.method, trainer.nets, stream, digits(), teacher, device)
        found.append(health.measured(clock, exported))
    assert found[0] == found[1]
    assert all(map(math.isfinite, found[0].values()))
    assert module_modes(trainer) == before
    assert all(torch.equal(value, trains[key]) for key, value in weights(trainer).items())
    assert not layers or "health.held_out_loss" in found[0]
    assert teacher.denoiser.training


def test_a_run_that_was_stopped_measures_the_same_bits(tmp_path):
    """Stopped behind step 3 and resumed, and straight: the same numbers at steps 5, 10 and 12."""
    seen = {}
    for name in ("straight", "stopped"):
        folder = tmp_path / name
        for stop in [3, None] if name == "stopped" else [None]:
            torch.manual_seed(len(name) + (stop or 0))
            one = trainer(Single(dropout=0.5), folder, config(log_every=1, save_every=3))
            held_out = data(images_seed=7).dataset
            health = Health(one.method, one.nets, one.data, held_out, None, one.device, every=5)
            looks = [stop_at(stop)] if stop else []
            try:
                one.fit(*looks, measures=[health])
            except StopError:
                assert stop
        lines = read_log(folder / "log.jsonl")
        seen[name] = [line[LOSS] for line in lines if LOSS in line]
    assert seen["straight"] == seen["stopped"]
    assert len(set(seen["straight"])) == 3


def test_what_one_measurement_says():
    """Noise and blanks are seen at once; a trend needs two."""
    assert verdict([{"step": 1}]) == "No health was measured (trainer.health_every)."
    fine = {"step": 1, "health.contrast": 1.0, "health.diversity": 0.9}
    assert verdict([fine]) == "Health was measured once, which shows no trend."
    blank = {"step": 1, "health.contrast": 0.03, "health.diversity": 4.0}
    assert verdict([{"step": 0}, blank]) == (
        "Contrast is 3% of the teacher's: the samples are blank, all alike or noise; diversity is "
        "400% of the teacher's: the samples are blank, all alike or noise."
    )
    near = {"step": 1, "health.contrast": 0.7, "health.diversity": 1.0}
    assert verdict([near]) == "Contrast is 70% of the teacher's: look at the samples."


@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_said_and_not_compared(tmp_path, spoilt):
    lines = [
        {"step": 1, "health.held_out_loss": 2.0, "health.distance": 1.0, "health.contrast": 1.0},
        {"step": 2, "health.held_out_loss": spoilt, "health.distance": 0.7},
        {"step": 3, "health.held_out_loss": 1.0, "health.distance": spoilt},
    ]
    lines[2]["health.contrast"] = spoilt
    assert verdict(lines) == (
        "The held-out loss fell from 2 to 1 (best 1); the distance to the teacher is not a finite "
        "number at the end; contrast is not a finite number: look at the samples."
    )
