"""Rows whose clean sample is the student's own answer to noise, in the methods that have them."""

import dataclasses

import pytest
import torch
from tests.diffusion.cases import close, every, rows
from tests.methods.chains import PROCESSES, Chain, descend, samples
from tests.methods.test_multi_boundary import ends_of
from tests.oracles import Gaussian, batch_of
from tests.stand_ins import GainTable, net

from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.process import VarianceExploding
from fewstep.diffusion.solvers import Euler
from fewstep.learning.batch import Batch
from fewstep.learning.consistency import adjacent
from fewstep.learning.losses import Squared
from fewstep.learning.method import Clock, Method
from fewstep.learning.simulation import Simulation
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.methods.latent_consistency import LatentConsistency
from fewstep.methods.multi_boundary import MultiBoundary
from fewstep.methods.phased_consistency import PhasedConsistency
from fewstep.methods.trajectory_consistency import TrajectoryConsistency

CLOCK = Clock(0, 100, 64)
VE = VarianceExploding()
METHODS = {
    "consistency_distillation": ConsistencyDistillation(bins=50, solver=Euler()),
    "latent_consistency": LatentConsistency(),
    "multi_boundary": MultiBoundary(segments=2),
    "phased_consistency": PhasedConsistency(adversarial=0.0),
    "trajectory_consistency": TrajectoryConsistency(told_end=True),
}


def perfect(method, data):
    """(student at zero loss, its chain): the teacher's steps, down to where the method lands."""
    process = data.process
    grid = method.times(process, method.bins)
    chain = Chain(data, grid)
    if isinstance(method, LatentConsistency | ConsistencyDistillation):  # f is x at the end
        return net(process, lambda x, t, *_: chain.landed(x, t, grid[-1].expand(len(t)))), chain
    if isinstance(method, MultiBoundary):
        chain.ends = ends_of(method, process)
    if isinstance(method, PhasedConsistency):
        chain.ends = phase_ends(method.ends(process, method.segments), grid)
    return net(process, chain), chain


def phase_ends(bounds, grid):
    """t -> the largest end of a phase that is not above the next lower time of the grid."""

    def ends(t):
        below = (grid[None] - t[:, None]).abs().argmin(1) + 1
        lower = grid[below.clamp(max=len(grid) - 1)]
        return torch.stack([bounds[bounds <= s].max() for s in lower])

    return ends


def plain(method):
    """Without guidance, which these teachers do not know."""
    return dataclasses.replace(method, guidance=None)


def test_every_method_that_has_it_is_here():
    found = {name for name, cls in Method.offered().items() if issubclass(cls, Simulation)}
    assert found == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
@every("process", PROCESSES)
def test_without_any_data_the_loss_is_zero_for_the_same_student(name, process):
    """The teacher's chain, at its own answers; a chain that is off has a loss there."""
    method = dataclasses.replace(plain(METHODS[name]), simulated=1.0)
    assert method.needs == frozenset()
    data = Gaussian(process, 0.3, 0.5)
    student, chain = perfect(method, data)
    nets = dict.fromkeys(("student", "target"), student)
    nets |= {"head": torch.nn.Identity(), "teacher": net(process, data)}
    fields = [field.name for field in dataclasses.fields(method.Nets)]
    nets = method.Nets(**{field: nets[field] for field in fields})
    batch = Batch(Cond(), Draws(0, range(256)), (1,))
    assert method.loss(nets, batch, CLOCK).terms["consistency"].abs().max() < 1e-9
    chain.down[20:] += 1e-2
    batch = Batch(Cond(), Draws(0, range(256)), (1,))
    assert method.loss(nets, batch, CLOCK).terms["consistency"].max() > 1e-7


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_share_of_the_rows_has_the_answers_at_the_first_time(share):
    method = LatentConsistency(simulated=share)
    grid = method.times(VE, method.bins)
    asked = []

    def answer(x_t, t, cond, s):
        asked.append((x_t, t, s))
        return torch.tanh(x_t)

    x0 = samples(4096, Gaussian(VE))
    batch = batch_of(x0)
    found = method.with_answers(batch, net(VE, answer), VE, batch.cond, grid)
    ((x_t, t, s),) = asked
    assert (t == VE.t_max).all()
    assert (s == grid[-1]).all()
    assert x_t.std().item() == pytest.approx(VE.t_max, rel=0.05)
    own = (found.data == torch.tanh(x_t).to(x0)).flatten()
    assert torch.equal(found.data[~own], x0[~own])
    assert own.double().mean().item() == pytest.approx(share, abs=0.03)
    assert batch.draws.count == 0  # the noise of the loss stays what it was
    assert torch.equal(found.noise(), batch_of(x0).noise())


def test_none_is_the_batch_itself():
    batch = batch_of(samples(16, Gaussian(VE)))
    method = LatentConsistency()
    assert method.with_answers(batch, net(VE, None), VE, batch.cond, method.times(VE, 50)) is batch
    assert method.needs == {"x0"}


def test_parts_of_a_batch_have_the_same_answers():
    method = MultiBoundary(simulated=0.5)
    student = net(VE, lambda x, t, cond, s: torch.tanh(x))
    x0 = samples(48, Gaussian(VE))
    grid = method.times(VE, method.bins)

    def answers(first, last):
        part = Batch(Cond(), Draws(3, range(first, last)), (1,), x0[first:last])
        return method.with_answers(part, student, VE, part.cond, grid).data

    assert torch.equal(torch.cat([answers(0, 20), answers(20, 48)]), answers(0, 48))


def test_the_answers_carry_no_gradient_and_no_masks():
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    network = net(VE, lambda x, t, cond, s: dropout(weight * x))
    dropout = network.network.dropout = torch.nn.Dropout(0.5)
    method = LatentConsistency(simulated=1.0)
    batch = batch_of(samples(64, Gaussian(VE)))
    found = method.with_answers(batch, network, VE, batch.cond, method.times(VE, 50)).data
    assert not found.requires_grad
    assert (found != 0).all()
    assert dropout.training


def test_training_without_data_reaches_the_chain():
    """One gain per starting time, from 0.5, on prompts alone."""
    method = MultiBoundary(segments=2, bins=6, distance=Squared(), simulated=1.0)
    data = Gaussian(VE, 0.0, 0.5)
    grid, ends = method.times(VE, 6), ends_of(method, VE)
    student = GainTable(VE, grid, ends)
    nets = method.Nets(student, net(VE, data))

    def loss(k):
        batch = Batch(Cond(), Draws(k, range(32)), (1,))
        return method.loss(nets, batch, CLOCK).terms["consistency"].mean()

    descend(student.parameters(), loss, 350, 0.04)
    chain = Chain(data, grid)
    t = grid[:-1]
    found = student.gains[chain.place(t), chain.place(ends(t))].detach()
    close(found, chain.gain(t, ends(t)), rtol=0, atol=1e-3)


def test_the_second_step_is_trained_where_it_is_asked():
    """Sampler and loss of a student with two steps: what the second step is shown has one
    distribution, which is not that of noised data.
    """
    n, times = 200_000, torch.tensor([80.0, 2.0], dtype=torch.float64)
    student = net(VE, lambda x, t, cond, s: 0.2 * torch.tanh(x))  # nothing like the data
    method = LatentConsistency(simulated=1.0)
    batch = Batch(Cond(), Draws(0, range(n)), (1,))
    answers = method.with_answers(batch, student, VE, batch.cond, times)
    trained = VE.add_noise(answers.data, answers.noise(), rows(2.0, n))
    draws = Draws(1, range(n))
    shown = student(VE.prior(draws.normal(1)), rows(80.0, n), Cond()) + 2.0 * draws.normal(1)
    for power in (2, 4):
        a, b = (x.double().pow(power) for x in (trained, shown))
        assert (a.mean() - b.mean()).abs() < 4 * (2 * a.var() / n) ** 0.5


@pytest.mark.parametrize("name", ["multi_boundary", "phased_consistency"])
@every("process", PROCESSES)
def test_a_deterministic_sampler_goes_on_with_the_noise_it_began_with(name, process):
    """What its second step is shown is what the loss makes of the answer, bit for bit but rounding;
    the other rows have new noise, as without.
    """
    method = dataclasses.replace(METHODS[name], simulated=0.5).for_steps(2)
    student = net(process, lambda x, t, cond, s: 0.2 * torch.tanh(x))  # nothing like the data
    x0 = samples(512, Gaussian(process))
    grid = method.times(process, method.bins)
    batch = batch_of(x0)
    found = method.with_answers(batch, student, process, batch.cond, grid)
    noise = batch_of(x0).draws.fork("simulated").normal(*batch.shape)
    walk = method.sampler(CLOCK).walk(student, process, noise, Cond(), Draws(1, range(512)))
    middle, expected = next(walk)
    shown = process.add_noise(found.data, found.noise(), middle)
    own = (found.data != x0).flatten()
    close(shown[own], expected[own], rtol=1e-5, atol=1e-5)
    plain = process.add_noise(x0, batch_of(x0).noise(), middle)
    assert torch.equal(shown[~own], plain[~own])
    assert 0.4 < own.double().mean() < 0.6


@pytest.mark.parametrize("name", ["latent_consistency", "multi_boundary"])
def test_a_weight_of_intervals_multiplies_the_loss(name):
    """By the number at the interval's beginning."""
    plain_one = dataclasses.replace(plain(METHODS[name]), simulated=0.0)
    weighted = dataclasses.replace(plain_one, weighting="root_snr")
    student = net(VE, lambda x, t, cond, s: 0.2 * torch.tanh(x))
    terms = []
    for method in (plain_one, weighted):
        fields = [field.name for field in dataclasses.fields(method.Nets)]
        nets = dict.fromkeys(("student", "target"), student)
        nets["teacher"] = net(VE, Gaussian(VE))
        nets = method.Nets(**{field: nets[field] for field in fields})
        terms.append(
            method.loss(nets, batch_of(samples(256, Gaussian(VE))), CLOCK).terms["consistency"]
        )
    t, _ = adjacent(plain_one.times(VE, 50), batch_of(samples(256, Gaussian(VE))).draws, VE)
    close(terms[1], terms[0] / t, rtol=1e-9, atol=0)


def test_without_a_solver_there_are_only_the_data():
    with pytest.raises(ValueError, match="simulated must be 0"):
        MultiBoundary(solver=None, simulated=0.5)
