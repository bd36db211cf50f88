"""Progressive distillation: its rounds, through the trainer, and its networks."""

import copy
import dataclasses

import pytest
import torch
from tests.diffusion.cases import close, every, f64
from tests.methods.test_progressive import MEAN, STD, affine_nets, samples
from tests.oracles import Gaussian, batch_of
from tests.training.tiny import StopError, assert_same, config, model, part, real, state, stop_at
from torch import nn

from fewstep.choice import replaced
from fewstep.contracts.trial import teacher
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.process import (
    VarianceExploding,
    VariancePreservingTable,
)
from fewstep.diffusion.samplers import Ode
from fewstep.diffusion.solvers import Euler
from fewstep.diffusion.times import Karras, Linspace, Strided, Trailing
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.method import Clock, Method
from fewstep.learning.schedules import Linear
from fewstep.methods.progressive import Progressive
from fewstep.models.adapters import FullCopy
from fewstep.models.source import Fresh
from fewstep.models.space import image_space
from fewstep.models.unet import UNet
from fewstep.training.log import read_log
from fewstep.training.optimizers import AdamW


@pytest.mark.parametrize(
    ("options", "rounds"),
    [
        ({}, [16, 8, 4]),
        ({"start": 8192, "end": 1}, [2**k for k in range(12, -1, -1)]),  # 13 halvings: invariant 6
        ({"start": 2, "end": 1}, [1]),
        ({"start": 27, "end": 1, "factor": 3}, [9, 3, 1]),
        ({"start": 32, "end": 8, "factor": 4}, [8]),
        ({"start": 12, "end": 3}, [6, 3]),
    ],
)
def test_the_rounds(options, rounds):
    method = Progressive(**options)
    assert method.rounds() == rounds
    assert [method.sampler(Clock(0, 1, 1, i)) for i in range(len(rounds))] == [
        Ode(n, method.times, Euler()) for n in rounds
    ]


@pytest.mark.parametrize(
    ("start", "end", "factor"),
    [
        (33, 4, 2),
        (4, 4, 2),
        (4, 8, 2),
        (32, 4, 1),
        (32, 5, 2),
        (24, 4, 3),
        (10, 3, 3),
        (1, 1, 2),
        (32, 3, 2),
    ],
)
def test_steps_that_do_not_divide_are_refused(start, end, factor):
    with pytest.raises(ValueError, match="power of factor"):
        Progressive(start=start, end=end, factor=factor)
    with pytest.raises(ValueError, match="power of factor"):
        Method.parse({"kind": "progressive", "start": start, "end": end, "factor": factor})


def test_the_last_two_rounds_last_twice_as_long():
    """The published run: 50,000 updates a round, 100,000 for those to 2 steps and to 1."""
    first = Progressive(start=8192, end=1).phases(750_000)
    assert first == [*range(0, 600_000, 50_000), 650_000]
    assert Progressive(start=27, end=1, factor=3).phases(400) == [0, 100, 200]
    assert Progressive(start=32, end=4).phases(600) == [0, 200, 400]
    assert Progressive(start=8, end=1).phases(7) == [0, 1, 4]


def test_fewer_steps_than_rounds_are_refused():
    with pytest.raises(ValueError, match="steps"):
        real(Progressive(), None, config(steps=2))


def test_a_grid_that_does_not_nest_is_refused():
    """Karras to the data: n points, then the data, so that only the ends are common."""
    with pytest.raises(ValueError, match="grid"):
        real(Progressive(times=Karras()), None, config(steps=1)).fit()


@every(
    "case",
    {
        "trailing": (VariancePreservingTable(), Trailing()),
        "whole": (VariancePreservingTable(), Linspace("t_min", whole=True)),
        "strided": (VariancePreservingTable(), Strided(Trailing(), 64)),
        "karras": (VarianceExploding(), Karras(end="t_min")),
    },
)
def test_these_grids_nest(case):
    process, times = case
    for n in Progressive(start=32, end=1).rounds():
        close(times(process, 2 * n)[::2], times(process, n), rtol=1e-12, atol=1e-12)


# Through the trainer: rounds 8, 4, 2, 1 of 2, 2, 4, 4 steps

METHOD = Progressive(start=16, end=1)
BORDERS = (2, 4, 8, 12)
CONFIG = config(schedule=Linear(end=0.0), optimizer=AdamW(lr=1e-2))


@pytest.fixture(scope="module")
def whole():
    """The run that nothing interrupted: its state at the start and behind every step."""
    one = real(METHOD, None, CONFIG)
    states = [state(one)]
    one.fit(lambda seen: states.append(state(one)))
    return states


def network(found, name):
    return {
        key.removeprefix(f"net/{name}/"): value
        for key, value in part(found, f"net/{name}/").items()
    }


def test_the_teacher_becomes_the_student_at_each_rounds_last_step_and_only_then(whole):
    assert METHOD.phases(12) == [0, *BORDERS[:-1]]
    assert_same(network(whole[0], "teacher"), network(whole[0], "student"))
    last = 0
    for done in range(1, 13):
        teacher, student = network(whole[done], "teacher"), network(whole[done], "student")
        if done in BORDERS:
            assert_same(teacher, student, f"behind step {done}")
            last = done
        else:
            assert_same(teacher, network(whole[last], "student"), f"behind step {done}")
            assert not torch.equal(student["network.last.weight"], teacher["network.last.weight"])


def test_optimizer_averages_and_rate_begin_anew_with_each_round(whole, folder):
    real(METHOD, folder, CONFIG).fit()
    rates = [line["rate"] for line in read_log(folder / "log.jsonl")]
    assert rates == pytest.approx([1, 0.5, 1, 0.5, 1, 0.75, 0.5, 0.25, 1, 0.75, 0.5, 0.25])
    steps = [int(found["optimizer/student/0/step"]) for found in whole[1:]]
    assert steps == [1, 2, 1, 2, 1, 2, 3, 4, 1, 2, 3, 4]
    for border in BORDERS[:-1]:  # nothing from before a round is left behind its first step
        behind = whole[border + 1]
        for name, now in network(behind, "student").items():
            assert torch.equal(behind[f"ema/student/0.9/{name}"], now)


@pytest.mark.parametrize("step", range(1, 12))
def test_a_run_cut_at_any_step_of_any_round_ends_with_the_same_bits(folder, whole, step):
    with pytest.raises(StopError):
        real(METHOD, folder, dataclasses.replace(CONFIG, save_every=step)).fit(stop_at(step))
    again = real(METHOD, folder, CONFIG)
    again.fit()
    assert_same(state(again), whole[-1])


def test_training_brings_each_round_to_its_teachers_steps():
    """Descent on the method's own loss, rounds 2 and 1, lands where the teacher's four steps do."""
    process, method = VarianceExploding(), Progressive(start=4, end=1)
    data = Gaussian(process, MEAN, STD)
    nets, student, _ = affine_nets(method, process, data)
    noise = torch.randn(8, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = Ode(4, method.times, Euler())(data, process, noise, Cond(), Draws(0, range(8)))
    before = method.sampler(Clock(1, 2, 64, 1))(data, process, noise, Cond(), Draws(0, range(8)))
    for phase in range(2):
        clock = Clock(phase, 2, 64, phase, 0, 1)
        optimizer = torch.optim.LBFGS(
            student.parameters(), max_iter=60, tolerance_change=0, tolerance_grad=0
        )

        def loss(optimizer=optimizer, clock=clock):
            optimizer.zero_grad()
            losses = method.loss(nets, batch_of(samples(64)), clock)
            losses.notes["distance"].mean().backward()
            return losses.notes["distance"].mean()

        optimizer.step(loss)
        method.after_step(nets, clock)
    made = method.sampler(clock)(nets.student, process, noise, Cond(), Draws(0, range(8)))
    assert (made - expected).abs().max() < 0.01 * (before - expected).abs().max()


# The networks


def test_only_the_student_has_dropout():
    """The published networks have none in distillation; a teacher with it would give another goal
    each time.
    """
    of = model(dropout=0.2)
    nets = METHOD.build_nets(of, FullCopy().clones(of.denoiser, dropout=0.3))

    def shares(net):
        return {module.p for module in net.modules() if isinstance(module, nn.Dropout)}

    assert (shares(of.denoiser), shares(nets.teacher), shares(nets.student)) == (
        {0.2},
        {0.0},
        {0.3},
    )
    one = real(METHOD, None, CONFIG, of=model(dropout=0.2))
    assert (
        one.nets.teacher.training
    )  # a network that moves is not in eval mode: its dropout has to be 0 itself
    x, t = torch.randn(4, 1, 2, 2), f64(1, 1, 1, 1)
    assert torch.equal(one.nets.teacher(x, t, Cond()), one.nets.teacher(x, t, Cond()))
    assert not torch.equal(one.nets.student(x, t, Cond()), one.nets.student(x, t, Cond()))


def test_the_model_that_was_handed_in_stays_as_it_is():
    of = model()
    before = copy.deepcopy(of.denoiser.state_dict())
    real(METHOD, None, CONFIG, of=of).fit()
    assert_same(dict(of.denoiser.state_dict()), dict(before))


def test_the_teacher_becomes_a_student_that_predicts_otherwise_too():
    of = model()
    start = model(seed=1).denoiser
    start.parameterization = start.parameterization.boundary()
    one = real(METHOD, None, CONFIG, of=of, default=start)
    one.fit()
    x, t = torch.randn(4, 1, 2, 2), f64(0.1, 1, 3, 10)
    assert torch.equal(one.nets.teacher(x, t, Cond()), one.nets.student(x, t, Cond()))


@pytest.mark.parametrize("more", ["s", "guidance"])
@pytest.mark.parametrize("who", ["start", "teacher"])
def test_start_and_teacher_get_each_others_inputs(who, more):
    """They are zero at first: the teacher answers as before; and a round's end has a place for
    every weight.
    """
    of = teacher(VarianceExploding())
    plain, wider = of.denoiser, FullCopy().clones(of.denoiser)("wider", inputs={more})
    of.denoiser, start = (plain, wider) if who == "start" else (wider, plain)
    told = who == "teacher" and more == "guidance"
    scale = GuidanceRange(embed=True) if told else None
    nets = replaced(METHOD, guidance=scale).build_nets(of, FullCopy().clones(start))
    assert nets.told is told
    assert set(nets.student.inputs) == set(nets.teacher.inputs) == {"label", more}
    x, t, cond = (
        torch.randn(4, 1, 8, 8),
        f64(0.1, 1, 3, 10),
        of.conditioner({"label": torch.arange(4)}),
    )
    assert torch.equal(nets.teacher(x, t, cond), of.denoiser(x, t, cond))
    with torch.no_grad():
        for parameter in nets.student.parameters():
            parameter += 0.1
    METHOD.after_step(nets, Clock(1, 12, 8, 0, 1, 2))
    assert_same(dict(nets.teacher.state_dict()), dict(nets.student.state_dict()))


def test_a_start_of_another_size_cannot_become_the_teacher():
    of, other = (
        Fresh(
            network=UNet(
                channels=c, multipliers=(1,), blocks=1, attention=(), head_channels=8, groups=4
            )
        ).load(image_space((1, 8, 8), 10), 0)
        for c in (8, 16)
    )
    with pytest.raises(ValueError, match="teacher's network"):
        METHOD.build_nets(of, FullCopy().clones(other.denoiser))
