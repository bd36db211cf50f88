"""Distribution matching: what the student is evaluated on, and its training."""

import math

import pytest
import torch
from tests.diffusion.cases import PROCESSES, close, every, f64, narrowed
from tests.methods.matching import CLOCK, MATCHING, VE, batch, functions
from tests.stand_ins import Seen, denoising
from tests.training.tiny import SHAPE, assert_same, config, data, model, part, real, state

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.parameterization import (
    CmBoundary,
    ConsistencyBoundary,
    Edm,
    SamplePrediction,
)
from fewstep.diffusion.process import VarianceExploding, VariancePreserving, VariancePreservingTable
from fewstep.diffusion.samplers import Renoise
from fewstep.learning.batch import Batch
from fewstep.methods.dmd2 import DMD2
from fewstep.models.adapters import FullCopy
from fewstep.training.trainer import Trainer

# What the student is evaluated on


@pytest.mark.parametrize(
    "process", [VE, VariancePreserving(), VariancePreservingTable()], ids=lambda p: type(p).__name__
)
def test_one_step_is_pure_noise_at_the_last_time(process):
    student = Seen(lambda x, t: 0.1 * x)
    nets = functions(student, lambda x, t: 0.5 * x, lambda x, t: 0.4 * x, process)
    for seed in range(5):
        DMD2(**MATCHING).loss(nets, batch(16, (4,), seed), CLOCK)
        draws = Draws(seed, range(16))
        draws.choice(1)
        ((x, t),) = student.asked
        assert torch.equal(x, process.prior(draws.normal(4)))
        assert (t == process.t_max).all()
        student.asked.clear()


@every("process", PROCESSES)
def test_the_student_learns_at_what_its_own_sampler_shows_it(process):
    """At time k, what `Renoise` with the same noise asks the student at its evaluation k (invariant
    10).
    """
    process = narrowed(process)
    method = DMD2(**MATCHING, steps=3)
    student = Seen(lambda x, t: torch.tanh(x) + 0.01 * t[:, None].to(x))
    nets = functions(student, lambda x, t: 0.5 * x, lambda x, t: 0.4 * x, process)
    found = []
    for seed in range(12):
        student.asked.clear()
        made = method.made(nets.student, batch(16, (4,), seed))
        asked = list(student.asked)
        draws = Draws(seed, range(16))
        assert draws.choice(3) == len(asked) - 1
        student.asked.clear()
        noise = draws.normal(4)
        sampler = method.sampler(CLOCK)
        assert sampler == Renoise(3, method.sample_times)
        sampler(nets.student, process, noise, Cond(), draws)
        for (x, t), (x_sampler, t_sampler) in zip(asked, student.asked):
            assert torch.equal(x, x_sampler)
            assert torch.equal(t, t_sampler)
        close(made, nets.student(*asked[-1], Cond()), rtol=0, atol=0)
        found.append(len(asked))
    assert sorted(set(found)) == [1, 2, 3]


def test_the_first_of_several_steps_is_the_only_one_of_one():
    """k = 0 equals training with steps=1, bit by bit."""
    student = lambda x, t: torch.tanh(x)  # noqa: E731
    nets = functions(student, lambda x, t: 0.5 * x, lambda x, t: 0.4 * x)
    seeds = [seed for seed in range(20) if Draws(seed, range(1)).choice(3) == 0]
    assert len(seeds) >= 3
    for seed in seeds:
        one, three = (
            DMD2(**MATCHING, steps=n).loss(nets, batch(16, (4,), seed), CLOCK).terms["matching"]
            for n in (1, 3)
        )
        assert torch.equal(one, three)


def test_all_rows_and_micro_batches_share_the_time():
    """Whole, in halves, and as two processes would see it: one k, the same samples."""
    method, student = (
        DMD2(**MATCHING, steps=3),
        Seen(lambda x, t: torch.tanh(x) / (1 + t[:, None]).to(x)),
    )
    net = denoising(VE, student)
    counts = []
    for seed in range(30):
        parts = []
        for rows in (range(32), range(20), range(20, 32)):
            student.asked.clear()
            parts.append(
                method.made(
                    net, Batch(Cond(), Draws(seed, rows, stream="loss", step=3, update=1), (4,))
                )
            )
            assert all(len(t.unique()) == 1 for _, t in student.asked)
            counts.append(len(student.asked))
        assert counts[-1] == counts[-2] == counts[-3]
        assert torch.equal(torch.cat(parts[1:]), parts[0])
    share = torch.bincount(torch.tensor(counts))[1:] / len(counts)
    assert (share > 0.15).all()  # 30 draws: each of the three a third, less three standard errors


def test_each_update_of_a_step_draws_its_own_time():
    method, student = DMD2(**MATCHING, steps=3), Seen(lambda x, t: x / 80)
    counts = []
    for update in range(12):
        student.asked.clear()
        method.made(
            denoising(VE, student), Batch(Cond(), Draws(0, range(4), step=2, update=update), (4,))
        )
        counts.append(len(student.asked))
    assert len(set(counts)) == 3


@pytest.mark.parametrize(
    "process", [VE, VariancePreserving(), VariancePreservingTable()], ids=lambda p: type(p).__name__
)
def test_what_is_noised_again_has_the_variance_of_its_time(process):
    """alpha² + sigma² for samples of unit variance: 1 for the variance-preserving (invariant
    10).
    """
    end = f64(process.t_min)
    spread = torch.hypot(
        process.alpha(end), process.sigma(end)
    ).item()  # of unit data, at the end of a jump
    generator = torch.Generator().manual_seed(0)
    student = Seen(lambda x, t: spread * torch.randn(x.shape, generator=generator))
    net = denoising(process, student)
    for seed in range(6):
        DMD2(**MATCHING, steps=3).made(net, batch(512, (64,), seed))
    inner = [(x, t) for x, t in student.asked if t[0] < process.t_max]
    assert len({float(t[0]) for _, t in inner}) == 2
    for x, t in inner:
        expected = (process.alpha(t[:1]) ** 2 + process.sigma(t[:1]) ** 2).item()
        assert x.var().item() == pytest.approx(expected, rel=4 * math.sqrt(2 / x.numel()))
        if not isinstance(process, VarianceExploding):
            assert expected == pytest.approx(1, rel=1e-9)


def test_only_the_last_evaluation_carries_a_gradient():
    """Backward simulation is input, not part of the loss: d made / d weight is that of one
    evaluation.
    """
    weight = torch.tensor(0.7, requires_grad=True)
    student = Seen(lambda x, t: weight * torch.tanh(x))
    net = denoising(VE, student)
    seed = next(seed for seed in range(20) if Draws(seed, range(1)).choice(3) == 2)
    made = DMD2(**MATCHING, steps=3).made(net, batch(16, (4,), seed))
    (grad,) = torch.autograd.grad(made.sum(), weight)
    assert len(student.asked) == 3
    close(grad, torch.tanh(student.asked[-1][0]).sum(), rtol=1e-6)


# Through the trainer


def grads(one):
    return {
        name: any(p.grad is not None and p.grad.any() for p in module.parameters())
        for name, module in one.state.modules.items()
    }


@pytest.mark.parametrize("gan", [0.0, 0.1])
def test_who_gets_a_gradient_in_which_update(gan, monkeypatch):
    """Teacher never; the student none when fake learns, fake and head none when the student does
    (invariant 4).
    """
    one = real(DMD2(fake_steps=2, gan=gan, gan_fake=gan), None, config(steps=2))
    found = []
    forget = one.state.forget_gradients
    monkeypatch.setattr(
        one.state,
        "forget_gradients",
        lambda names: (found.append((names, grads(one))), forget(names)),
    )
    one.fit()
    nobody = dict.fromkeys(("student", "fake", "head", "teacher"), False)
    learns = ("fake", "head"), {**nobody, "fake": True, "head": gan > 0}
    moves = ("student",), {**nobody, "student": True}
    assert found == [learns, learns, moves] * 2
    assert grads(one) == nobody


@pytest.mark.parametrize("fake_steps", [1, 3, 5])
def test_the_student_is_updated_once_per_so_many_of_the_fakes(fake_steps):
    one = real(DMD2(fake_steps=fake_steps), None, config(steps=4))
    before = state(one)
    one.fit()
    after = state(one)
    counts = {name: int(after[f"optimizer/{name}/0/step"]) for name in ("student", "fake", "head")}
    assert counts == {"student": 4, "fake": 4 * fake_steps, "head": 4 * fake_steps}
    assert one.batches == 4 * (fake_steps + 1)
    assert_same(part(after, "net/teacher"), part(before, "net/teacher"))
    for name in counts:
        assert all(
            (after[key] != before[key]).any()
            for key in part(before, f"net/{name}")
            if "weight" in key
        ), name


def test_fake_learns_before_the_student_moves():
    """The first update of the student sees a fake that has learnt `fake_steps` times, on as many
    batches.
    """
    updates = DMD2(fake_steps=3).updates(CLOCK)
    assert [update.trains for update in updates] == [("fake", "head")] * 3 + [("student",)]


def test_the_student_keeps_the_identity_at_t_min_through_training():
    """A boundary is made of whatever it starts from, and one that is there already stays (invariant
    11).
    """
    starts = {
        Edm(): CmBoundary(0.5),
        SamplePrediction(): ConsistencyBoundary(SamplePrediction()),
        CmBoundary(0.4): CmBoundary(0.4),
    }
    x, t = torch.randn(4, *SHAPE), torch.full((4,), VE.t_min, dtype=torch.float64)
    for parameterization, expected in starts.items():
        start = model(seed=1).denoiser
        start.parameterization = parameterization
        method, chosen = DMD2(fake_steps=1), config(steps=3)
        nets = method.build_nets(model(), FullCopy().clones(start))
        one = Trainer(method, nets, data(), chosen)
        assert one.nets.student.parameterization == expected
        assert one.nets.fake.parameterization == one.nets.teacher.parameterization == Edm()
        one.fit()
        assert torch.equal(one.nets.student(x, t, Cond()), x)
        assert not torch.equal(one.nets.student(x, 2 * t, Cond()), x)


def test_fake_begins_as_the_teacher_and_the_student_as_its_start():
    of, start = model(seed=1), model(seed=2).denoiser
    nets = DMD2().build_nets(of, FullCopy().clones(start))
    assert_same(dict(nets.fake.state_dict()), dict(of.denoiser.state_dict()))
    assert_same(dict(nets.student.state_dict()), dict(start.state_dict()))
    assert nets.teacher is of.denoiser
    storages = [
        {p.data_ptr() for p in net.parameters()} for net in (nets.student, nets.fake, nets.teacher)
    ]
    assert not storages[0] & storages[1]
    assert not storages[1] & storages[2]


def test_dropout_is_off_in_the_teacher():
    """Spec 9.15: the seed's teacher had dropout 0.1 in use; a frozen network is in eval mode."""
    one = real(DMD2(fake_steps=1), None, config(steps=1), of=model(dropout=0.5))
    x, t = torch.randn(4, *SHAPE), f64(1, 1, 1, 1)
    assert torch.equal(one.nets.teacher(x, t, Cond()), one.nets.teacher(x, t, Cond()))


def test_student_and_fake_have_no_dropout():
    """Both are in training mode, so theirs is 0 itself, whatever the start's or the run's."""
    one = real(DMD2(), of=model(dropout=0.5), dropout=0.3)
    x, t = torch.randn(4, *SHAPE), f64(1, 1, 1, 1)
    for net in (one.nets.student, one.nets.fake):
        assert net.training
        assert torch.equal(net(x, t, Cond()), net(x, t, Cond()))
