"""Truncated consistency models against closed forms: which rows are at the edge, whose answer they
are compared with, what the loss is on average, when `first` is made, and what training reaches.
"""

import math

import pytest
import torch
from tests.diffusion.cases import PROCESSES, close, every, f64
from tests.methods.test_easy_consistency import samples
from tests.oracles import Gaussian, batch_of
from tests.stand_ins import Dropping, Exact, ExactFlow, Kept, TimeGain, denoising
from tests.training.tiny import StopError, stop_at

from fewstep.contracts.trial import teacher
from fewstep.data.digits import Digits
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.parameterization import SamplePrediction
from fewstep.diffusion.process import VarianceExploding
from fewstep.learning.losses import PseudoHuber, Squared
from fewstep.learning.method import Clock, Method
from fewstep.methods.easy_consistency import EasyConsistency
from fewstep.methods.truncated_consistency import TruncatedConsistency
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import Sgd

VE = VarianceExploding()
DATA = Gaussian(VE, std=0.5)
SECOND = Clock(50, 100, 64, 1, 0, 50)


class Look:
    """One call of the second stage's loss, and what each pass saw: of the student with a gradient,
    of first, of the student without.
    """

    def __init__(self, process, student, first, batch, easy=None, **options):
        calls = []

        def seen(name, f):
            return Exact(
                process, lambda x, t: calls.append((name, x, t, torch.is_grad_enabled())) or f(x, t)
            )

        self.method = TruncatedConsistency(easy=easy or EasyConsistency(distance=Kept()), **options)
        teacher = denoising(process, Gaussian(process, std=0.5))
        nets = self.method.Nets(seen("student", student), teacher, seen("first", first))
        (update,) = self.method.updates(SECOND)
        self.losses = update.loss(nets, batch, SECOND)
        self.calls = calls
        (_, self.x_t, self.t, _), (_, self.x_r, self.r, _), _ = calls
        self.edge = self.method.edge_of(process)
        self.at_edge = self.t == self.edge


def constant(value):
    return lambda x, t: torch.full_like(x, value)


@every("process", PROCESSES)
def test_the_student_is_asked_from_the_edge_up_and_first_answers_below_it(process):
    look = Look(process, constant(2.0), constant(1.0), batch_of(samples(2000)))
    assert [(name, grad) for name, _, _, grad in look.calls] == [
        ("student", True),
        ("first", False),
        ("student", False),
    ]
    assert look.t.min() >= look.edge
    assert look.t.max() <= process.t_max
    assert (look.r < look.t).all()
    assert look.r.min() >= process.t_min
    close(look.calls[1][2], look.calls[2][2])
    distance = look.method.easy.distance
    below = look.r < look.edge
    assert torch.equal(distance.goal[below], torch.ones_like(distance.goal[below]))
    assert torch.equal(distance.goal[~below], 2 * torch.ones_like(distance.goal[~below]))
    assert below[look.at_edge].all()
    assert not below[look.t > 1.5 * look.edge].any() or process.t_data < 0
    assert look.losses.terms["consistency"].isfinite().all()


def test_the_answer_at_the_edge_does_not_depend_on_the_student():
    goals = []
    for factor in (0.3, 0.9):
        student = lambda x, t, factor=factor: factor * x  # noqa: E731
        look = Look(VE, student, lambda x, t: 0.5 * x, batch_of(samples(500)))
        goals.append(look.method.easy.distance.goal[look.at_edge])
    assert torch.equal(*goals)
    assert len(goals[0]) > 90


def test_the_density_has_the_options_of_the_method():
    """df = 1 is Cauchy's distribution from the edge to t_max: ln(t/edge) = std tan(u
    atan(ln(t_max/edge)/std)).
    """
    edge, std, x0 = 2.0, 0.5, samples(500)
    look = Look(
        VE,
        constant(0.0),
        constant(0.0),
        batch_of(x0),
        edge=edge,
        std=std,
        df=1.0,
        edge_probability=0.0,
    )
    share = batch_of(x0).draws.uniform() * math.atan(math.log(VE.t_max / edge) / std)
    close(look.t, edge * torch.exp(std * torch.tan(share)), rtol=1e-4)


def test_r_is_as_close_as_the_limit_says():
    """Published: r/t = 1 - (1 - 0.999) n(t) in the whole second stage; its smallest t is 1, so n(1)
    = 3.15.
    """
    look = Look(VE, constant(0.0), constant(0.0), batch_of(samples(500)))
    close(look.r / look.t, 1 - 0.001 * (1 + 8 * torch.sigmoid(-look.t)), rtol=1e-9)
    easy = EasyConsistency(distance=Kept(), q=4.0, limit=0.9961)
    look = Look(VE, constant(0.0), constant(0.0), batch_of(samples(500)), easy=easy)
    close(look.r / look.t, 1 - 0.0039 * (1 + 8 * torch.sigmoid(-look.t)), rtol=1e-9)


@pytest.mark.parametrize(("boundary", "weight"), [(0.25, 0.1), (0.5, 1.0), (0.0, 0.1)])
def test_the_loss_is_the_published_one_on_average(boundary, weight):
    """mean over the others + weight · mean over the rows at the edge. The two counts are binomial:
    with n rows each part scatters about it by √((1-p)/(p n)), here below 1 %, and the means
    themselves by as much.
    """
    n = 40_000
    look = Look(
        VE,
        lambda x, t: 0.5 * x,
        constant(0.0),
        batch_of(samples(n)),
        edge_probability=boundary,
        edge_weight=weight,
    )
    found = look.losses.terms["consistency"]
    plain = look.losses.notes["distance"] / (look.t - look.r)
    share = look.at_edge.double().mean().item()
    assert share == pytest.approx(boundary, abs=4 * math.sqrt(0.25 / n))
    rest = plain[~look.at_edge].mean()
    at_edge = plain[look.at_edge].mean() if boundary else 0.0
    assert found.mean().item() == pytest.approx(float(rest + weight * at_edge), rel=0.03)
    close(found[~look.at_edge], plain[~look.at_edge] / (1 - boundary), rtol=1e-7)
    if boundary:
        close(found[look.at_edge], plain[look.at_edge] * weight / boundary, rtol=1e-7)


def test_which_rows_are_at_the_edge_does_not_depend_on_the_micro_batch():
    x0 = samples(64)
    whole = Look(VE, constant(0.0), constant(1.0), batch_of(x0))
    for rows in (slice(0, 24), slice(24, 64)):
        batch = batch_of(x0)
        part = type(batch)(
            batch.cond, batch.draws.select(rows.start, rows.stop), batch.shape, x0[rows]
        )
        look = Look(VE, constant(0.0), constant(1.0), part)
        close(look.t, whole.t[rows], rtol=1e-14)
        close(look.losses.terms["consistency"], whole.losses.terms["consistency"][rows])


def test_where_the_student_is_what_first_is_it_is_easy_consistency():
    """The same distance as between two looks of one function, on the truncated times."""
    f = lambda x, t: x / (1 + t)[:, None]  # noqa: E731
    look = Look(VE, f, f, batch_of(samples(400)))
    expected = Squared()(f(look.x_t, look.t), f(look.x_r, look.r))
    close(look.losses.notes["distance"], expected)
    noise = (look.x_t - samples(400)) / look.t[:, None]
    close(look.x_r, samples(400) + look.r[:, None] * noise, rtol=1e-7, atol=1e-9)


def test_the_exact_student_with_an_exact_step_is_stationary():
    exact = lambda x, t: DATA.flow(x, t, torch.full_like(t, VE.t_min))  # noqa: E731
    look = Look(
        VE,
        exact,
        exact,
        batch_of(samples(512)),
        easy=EasyConsistency(solver=ExactFlow(DATA), distance=Squared()),
    )
    assert look.losses.notes["distance"].max() < 1e-24


def test_all_three_passes_have_the_same_masks():
    method = TruncatedConsistency(easy=EasyConsistency(distance=Kept()))
    student, first = (Denoiser(Dropping(), VE, SamplePrediction()) for _ in range(2))
    batch = batch_of(torch.randn(200, 20))
    method.loss(method.Nets(student, student, first), batch, SECOND)
    assert torch.equal(method.easy.distance.jump, method.easy.distance.goal)
    assert 0.4 < (method.easy.distance.jump == 0).float().mean() < 0.6


# Two stages


def trainer_of(steps=6, folder=None, **options):
    digits = Digits(limit=64).dataset()
    model, method = teacher(VarianceExploding()), TruncatedConsistency(**options)
    config = TrainerConfig(
        steps=steps, batch=16, optimizer=Sgd(lr=0.05), ema=(0.5,), save_every=1, health_every=0
    )
    return (
        Run(Digits(), method, trainer=config).prepared(digits, model=model, folder=folder).trainer
    )


def bits(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_first_becomes_the_student_at_the_end_of_the_first_stage():
    trainer, seen = trainer_of(), []

    def look(step):
        seen.append([bits(trainer.state.modules[name]) for name in ("student", "first")])

    begin = bits(trainer.state.modules["first"])
    trainer.fit(look)
    assert trainer.method.phases(6) == (0, 3)
    for student, first in seen[:2]:
        assert torch.equal(first, begin)
        assert not torch.equal(student, begin)
    assert torch.equal(*seen[2])
    for student, first in seen[3:]:
        assert torch.equal(first, seen[2][0])
        assert not torch.equal(student, first)


@pytest.mark.parametrize("step", [2, 3, 5])
def test_a_resumed_run_has_the_same_first(step, tmp_path):
    """Cut before, at and behind the change of stage."""
    whole = trainer_of()
    whole.fit()
    with pytest.raises(StopError):
        trainer_of(folder=tmp_path).fit(stop_at(step))
    again = trainer_of(folder=tmp_path)
    again.fit()
    for name in ("student", "first"):
        assert torch.equal(bits(again.state.modules[name]), bits(whole.state.modules[name]))


def test_without_a_first_stage_first_is_where_the_student_starts():
    trainer = trainer_of(steps=2, share=0.0)
    begin = bits(trainer.state.modules["student"])
    trainer.fit()
    assert torch.equal(bits(trainer.state.modules["first"]), begin)
    assert not torch.equal(bits(trainer.state.modules["student"]), begin)


def test_the_first_stage_is_easy_consistency_with_all_its_stages():
    """Bit by bit, on the clock of the phase."""
    easy = EasyConsistency()
    method = TruncatedConsistency(easy=easy)
    student = Exact(VE, lambda x, t: x / (1 + t)[:, None])
    for step in (0, 11, 24):
        (update,) = method.updates(Clock(step, 100, 64, 0, step, 25))
        found = update.loss(
            method.Nets(student, student, student),
            batch_of(samples(64)),
            Clock(step, 100, 64, 0, step, 25),
        )
        expected = easy.loss(
            easy.Nets(student, student), batch_of(samples(64)), Clock(step, 25, 64)
        )
        assert torch.equal(found.terms["consistency"], expected.terms["consistency"])
    assert easy.share(Clock(24, 25, 64)) == 2.0**-8


@every("process", PROCESSES)
def test_the_sampler_asks_the_student_where_it_has_learned(process):
    method = TruncatedConsistency()
    sampler = method.sampler(SECOND)
    for steps in (1, 2, 4):
        *times, end = sampler.with_steps(steps).times(process, steps)
        assert end == process.t_min
        assert min(times) >= method.edge_of(process) - 1e-9
    if process == VE:
        assert sampler.times(VE, 2).tolist() == pytest.approx([80.0, 1.0, 0.002])  # as published


def test_options_are_checked():
    for wrong in ({"share": 1.0}, {"boundary": 1.0}, {"edge": 0.0}, {"df": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Method.parse({"kind": "truncated_consistency"} | wrong)
    with pytest.raises(ValueError, match=r"edge=100 is t=100, not between 0\.002 and 80"):
        trainer_of(edge=100.0)
    with pytest.raises(ValueError, match="too few for two stages"):
        TruncatedConsistency(share=0.1).phases(5)
    assert TruncatedConsistency(share=0.9).phases(100) == (0, 90)
    assert TruncatedConsistency(share=0.0).phases(1) == (0,)


def test_training_reaches_the_chain_that_ends_at_first():
    """The optimum from the edge up: gains of single steps down to below the edge, and from there
    first's.

    A coarse limit makes the steps long and the chain short, so that it differs from the exact flow
    by what a short training can resolve: up to 0.107. Tolerance: the worst of three seeds is 0.025.
    """
    torch.manual_seed(0)
    method = TruncatedConsistency(
        easy=EasyConsistency(distance=PseudoHuber(0.3), limit=0.75), df=3.0, std=0.6
    )
    first = lambda x, t: DATA.flow(x, t, torch.full_like(t, VE.t_min))  # noqa: E731
    student = TimeGain(VE)
    nets = method.Nets(student, student, Exact(VE, first))
    optimizer, steps = torch.optim.Adam(student.parameters()), 300
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.02 * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = (
            method.loss(nets, batch_of(samples(512, step), seed=step), SECOND)
            .terms["consistency"]
            .mean()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    t = f64(1.0, 1.2, 1.6, 2.4)
    expected, now = torch.ones_like(t), t
    while bool((now >= 1).any()):
        r = method.easy.lower(VE, now, 0.25)
        expected, now = (
            torch.where(now >= 1, expected * DATA.step_gain(now, r), expected),
            torch.where(now >= 1, r, now),
        )
    expected = expected * DATA.spread(f64(VE.t_min)) / DATA.spread(now)
    flow = DATA.spread(f64(VE.t_min)) / DATA.spread(t)
    assert (student.gain(t) - expected).abs().max() < 0.035
    assert (flow - expected).max() > 0.1
