"""Consistency training against closed forms: data N(0, 0.5²), or a single point; both published
forms.
"""

import copy
import math

import pytest
import torch
from tests.diffusion.cases import PROCESSES, close, every, f64
from tests.methods.test_consistency import by_place, slopes
from tests.oracles import Gaussian, batch_of
from tests.stand_ins import Dropping, Exact, Gains, Kept

from fewstep.contracts.trial import teacher
from fewstep.data.digits import Digits
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.densities import LogNormal
from fewstep.diffusion.parameterization import SamplePrediction
from fewstep.diffusion.process import VarianceExploding
from fewstep.diffusion.solvers import Euler
from fewstep.learning.losses import Distance, PseudoHuber, Squared
from fewstep.learning.method import Clock, Method
from fewstep.methods.consistency_training import ConsistencyTraining
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import Sgd

VE = VarianceExploding()
DATA = Gaussian(VE, std=0.5)
CLOCK = Clock(0, 100, 64)
FIRST_PAPER = {
    "first": 2,
    "last": 150,
    "curriculum": "progressive",
    "density": None,
    "target": "adaptive",
}
EVEN = {"curriculum": "fixed", "density": None}


def samples(n, seed=1):
    return 0.5 * torch.randn(
        n, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


class Look:
    """One call of the loss, and everything that the two passes saw."""

    def __init__(self, process, function, batch, clock=CLOCK, slow=None, **options):
        calls = []

        def seen(f):
            return Exact(process, lambda x, t: calls.append((x, t)) or f(x, t))

        method = ConsistencyTraining(distance=Kept(), **options)
        nets = (
            method.Nets(seen(function), None)
            if slow is None
            else method.Nets(seen(function), seen(slow))
        )
        self.losses = method.loss(nets, batch, clock)
        (self.x_t, self.t), (self.x_s, self.s) = calls
        self.jump, self.goal = method.distance.jump, method.distance.goal


# The pair


@every("process", PROCESSES)
def test_both_looks_are_of_one_sample_and_one_noise(process):
    """x_s is the step from x_t with the sample in the place of the teacher's answer."""
    x0 = samples(500)
    look = Look(process, lambda x, t: x, batch_of(x0), last=40, **EVEN)
    assert (look.t > look.s).all()
    close(look.x_s, process.step(look.x_t, x0, look.t, look.s), rtol=1e-9, atol=1e-9)
    noise = (look.x_t - process.alpha(look.t)[:, None] * x0) / process.sigma(look.t)[:, None]
    assert noise.std().item() == pytest.approx(1, abs=4 / math.sqrt(2 * 500))


@every("process", PROCESSES)
@pytest.mark.parametrize("options", [{}, FIRST_PAPER], ids=["second paper", "first paper"])
@pytest.mark.parametrize("step", [0, 50, 99])
def test_every_process_has_intervals_and_finite_losses_in_the_whole_run(process, options, step):
    """A table of 1000 indices too, of which 1280 intervals name some twice."""
    half = lambda x, t: 0.5 * x  # noqa: E731
    slow = half if "target" in options else None
    look = Look(process, half, batch_of(samples(2000)), Clock(step, 100, 64), slow, **options)
    assert (look.t > look.s).all()
    assert look.losses.terms["consistency"].isfinite().all()


@every("process", PROCESSES)
def test_the_exact_student_of_a_single_point_is_stationary(process):
    """Where the data is one point, both looks end at the same x at t_min."""
    data = Gaussian(process, 0.3, 0.0)
    exact = lambda x, t: data.flow(x, t, torch.full_like(t, process.t_min))  # noqa: E731
    look = Look(
        process, exact, batch_of(torch.full((200, 2), 0.3, dtype=torch.float64)), density=None
    )
    close(look.jump, look.goal, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("slow", [None, 0.15])
def test_what_a_slow_target_does_to_a_single_point(slow):
    """For f = (t_min/t) x + (1 - t_min/t) θ on data ξ the difference is -t_min (ξ - θ)(t - s)/(t
    s): divided by the interval it tells of ξ at any grid. A target with θ' adds (1 - t_min/s)(θ -
    θ'), which does not shrink.
    """
    xi, theta, found = 0.7, 0.2, []

    def student(value):
        return lambda x, t: (VE.t_min / t)[:, None] * x + (1 - VE.t_min / t)[:, None] * value

    for bins in (100, 10_000):
        batch = batch_of(torch.full((4000, 1), xi, dtype=torch.float64))
        options = {"last": bins, "target": "student" if slow is None else "fixed"} | EVEN
        look = Look(
            VE, student(theta), batch, slow=None if slow is None else student(slow), **options
        )
        t, s, difference = look.t, look.s, (look.jump - look.goal)[:, 0]
        lag = 0 if slow is None else theta - slow
        close(
            difference,
            -VE.t_min * (xi - theta) * (t - s) / (t * s) + (1 - VE.t_min / s) * lag,
            rtol=1e-6,
            atol=1e-12,
        )
        found.append((difference / (t - s))[t > 1].abs().mean().item())
    if slow is None:
        assert found[1] == pytest.approx(found[0], rel=0.2)  # 100 intervals are coarse
    else:
        assert found[1] > 50 * found[0]


# The optimum


def euler_chain(grid):
    """From each time, all Euler steps of the exact teacher that are left."""
    one = torch.ones(1, 1, dtype=torch.float64)
    steps = [Euler()(DATA, VE, one, t[None], s[None], Cond())[0, 0] for t, s in zip(grid, grid[1:])]
    return torch.stack(steps).flip(0).cumprod(0).flip(0)


class LogGains(torch.nn.Module):
    """A student x0 = exp(log)·x, one log per time of the grid, 0 at its end: every gain has the
    same relative rate.
    """

    def __init__(self, grid, logs):
        super().__init__()
        self.process, self.grid, self.logs = VE, grid, torch.nn.Parameter(logs)

    def forward(self, x_t, t, cond=None, s=None):
        logs = torch.cat([self.logs, torch.zeros(1, dtype=torch.float64)])
        return logs[(self.grid[None] - t[:, None]).abs().argmin(1)].exp()[:, None] * x_t


OPTIMA = [
    {},
    {"target": "fixed", "target_decay": 0.5, "weighting": "karras", "distance": Squared()},
]


@pytest.mark.parametrize("options", OPTIMA)
def test_training_reaches_the_chain_of_the_teachers_euler_steps(options):
    """The data takes the teacher's place: E[x_s | x_t] is its Euler step. For Gaussian data the
    optimum is linear, and the same for every distance that grows with |a - b| and every weight.
    Training starts from the exact flow, whose gains are larger by the factors exp(0.45), four
    times, exp(0.23) and exp(0.005); the worst of four seeds ends at 0.052.
    """
    method = ConsistencyTraining(last=6, **EVEN, **options)
    grid = method.times(VE, 6)
    chain, spread = euler_chain(grid).log(), DATA.spread(grid)
    flow = (spread[-1] / spread[:-1]).log()
    assert (flow - chain)[:5].min() > 0.23
    student = LogGains(grid, flow)
    nets = method.Nets(student, None)
    if method.target != "student":
        nets = method.Nets(student, copy.deepcopy(student))
    optimizer, steps = torch.optim.Adam(student.parameters(), betas=(0.9, 0.99)), 250
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.04 * 0.5 * (1 + math.cos(math.pi * step / steps))
        batch = batch_of(samples(512, step), seed=step)
        loss = method.loss(nets, batch, CLOCK).terms["consistency"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(nets, Clock(step, steps, 512))
    assert (student.logs - chain).abs().max() < 0.08


@pytest.mark.parametrize("options", OPTIMA)
def test_the_chain_alone_is_stationary(options):
    """Every gain by itself: within four standard errors the gradient is zero at the chain, and
    beyond them it leads back where the ratios of neighbouring gains are off by 2 to 38 %, up and
    down in turn.
    """
    method = ConsistencyTraining(last=6, **EVEN, **options)
    grid, x0 = method.times(VE, 6), samples(20_000)

    def found(gains):
        student = Gains(VE, grid, gains)
        nets = (
            method.Nets(student, None)
            if method.target == "student"
            else method.Nets(student, student)
        )
        _, place, slope = slopes(method, nets, x0)
        mean, error = by_place(slope, place)
        return mean / error

    chain = euler_chain(grid)
    assert found(chain).abs().max() < 4
    assert (found(chain * f64(1, 1.1, 1, 1.1, 0.8, 1.02)) * f64(-1, 1, -1, 1, -1, 1)).min() > 4


# Targets


def test_a_slow_target_of_decay_zero_is_the_student_itself():
    """To the last bit, over several steps."""
    ends = []
    for target in ("student", "fixed"):
        method = ConsistencyTraining(last=8, target=target, target_decay=0.0, **EVEN)
        student = Gains(VE, method.times(VE, 8))
        nets = (
            method.Nets(student, None)
            if target == "student"
            else method.Nets(student, copy.deepcopy(student))
        )
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        for step in range(5):
            loss = method.loss(nets, batch_of(samples(64, step), seed=step), CLOCK).terms[
                "consistency"
            ]
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            method.after_step(nets, CLOCK)
        ends.append(student.gains.detach())
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], torch.ones(8, dtype=torch.float64))


@pytest.mark.parametrize("target", ["student", "fixed"])
@pytest.mark.parametrize("masks", ["shared", "own", "none"])
def test_the_masks_of_the_targets_pass(target, masks):
    method = ConsistencyTraining(distance=Kept(), target=target, target_masks=masks)
    student, slow = (Denoiser(Dropping(), VE, SamplePrediction()) for _ in range(2))
    nets = method.Nets(student, None) if target == "student" else method.Nets(student, slow)
    method.loss(nets, batch_of(torch.randn(200, 20)), CLOCK)
    jump, goal = method.distance.jump, method.distance.goal
    assert 0.45 < (jump == 0).float().mean() < 0.55
    same = {"shared": 1.0, "own": 0.5, "none": 0.0}[masks]  # of the places that the student dropped
    assert (goal == 0)[jump == 0].float().mean().item() == pytest.approx(same, abs=0.05)
    assert torch.equal(jump, goal) == (masks == "shared")
    assert torch.equal(goal, torch.ones_like(goal)) == (masks == "none")


def test_the_adaptive_decay_of_the_official_code():
    """μ(k) = exp(s0 ln μ0/N') at shares of the run; the paper's N' + 1 would give 0.9 at the first
    step.
    """
    method = ConsistencyTraining(**FIRST_PAPER, target_decay=0.9)
    found = [
        method.decay(Clock(int(share * 100_000), 100_000, 1))
        for share in (0, 0.001, 0.01, 0.1, 0.5, 1)
    ]
    assert found == pytest.approx(
        [0.81, 0.958732, 0.986050, 0.995527, 0.998014, 0.998596], abs=5e-7
    )
    method = ConsistencyTraining(**FIRST_PAPER | {"last": 200}, target_decay=0.95)
    found = [
        method.decay(Clock(int(share * 100_000), 100_000, 1))
        for share in (0, 0.001, 0.01, 0.1, 0.5, 1)
    ]
    assert found == pytest.approx(
        [0.9025, 0.983048, 0.994884, 0.998373, 0.999278, 0.999487], abs=5e-7
    )
    points = [
        method.bins(Clock(int(share * 100_000), 100_000, 1)) + 1
        for share in (0, 0.001, 0.01, 0.1, 0.5, 1)
    ]
    assert points == [2, 7, 21, 64, 143, 201]
    assert ConsistencyTraining(target="fixed", target_decay=0.95).decay(CLOCK) == 0.95


def trainer_of(**options):
    """Three steps of 16 digits with a tiny teacher."""
    digits = Digits(limit=64).dataset()
    model, method = teacher(VarianceExploding()), ConsistencyTraining(**options)
    config = TrainerConfig(steps=3, batch=16, optimizer=Sgd(lr=0.05), ema=(0.5,))
    return Run(Digits(), method, trainer=config).prepared(digits, model=model).trainer


@pytest.mark.parametrize("target", ["fixed", "adaptive"])
def test_the_trainer_carries_a_slow_target(target):
    """It starts as the student, moves by each step's own decay, is saved, and gets no gradient."""
    trainer = trainer_of(**FIRST_PAPER | {"target": target}, target_decay=0.7)
    assert trainer.state.roles.moves == ("target",)
    student, slow = (
        dict(trainer.state.modules[name].named_parameters()) for name in ("student", "target")
    )
    expected = {k: v.detach().double() for k, v in slow.items()}
    assert all(torch.equal(v, student[k]) for k, v in slow.items())
    decays = []

    def look(seen):
        decay = trainer.method.decay(seen.clock)
        decays.append(decay)
        for k, v in student.items():
            expected[k] = decay * expected[k] + (1 - decay) * v.detach().double()

    trainer.fit(look)
    for k, v in slow.items():
        close(v.double(), expected[k], rtol=1e-5, atol=1e-7)
        assert not v.requires_grad
    assert len(set(decays)) == (1 if target == "fixed" else 3)
    assert any(key.startswith("target/") for key in trainer.state.saved()["nets"])


def test_without_a_slow_target_there_is_no_second_network():
    trainer = trainer_of()
    assert trainer.state.roles.moves == ()
    assert list(trainer.state.modules) == ["student"]


# Curricula and options


def test_the_curricula():
    doubling = ConsistencyTraining()
    assert [doubling.bins(Clock(step, 800, 1)) for step in range(0, 800, 100)] == [
        10 * 2**k for k in range(8)
    ]
    assert [doubling.bins(Clock(step, 3, 1)) for step in range(3)] == [10, 20, 40]
    capped = ConsistencyTraining(
        first=10, last=1000
    )  # 10 … 640 and, in the last of eight parts, 1000
    assert [capped.bins(Clock(step, 800, 1)) for step in (0, 699, 700, 799)] == [
        10,
        640,
        1000,
        1000,
    ]
    assert {
        ConsistencyTraining(last=7, curriculum="fixed").bins(Clock(step, 9, 1)) for step in range(9)
    } == {7}
    for method in (doubling, capped, ConsistencyTraining(**FIRST_PAPER)):
        found = [method.bins(Clock(step, 1000, 1)) for step in range(1000)]
        assert found == sorted(found)
        assert (found[0], found[-1]) == (
            method.first,
            method.last,
        ) or method.curriculum == "progressive"


def test_the_weight_is_the_interval_the_note_is_the_distance():
    look = Look(VE, lambda x, t: 0.5 * x, batch_of(samples(64)))
    distance = (look.jump - look.goal).square().mean(1)
    close(look.losses.notes["distance"], distance)
    close(look.losses.terms["consistency"], distance / (look.t - look.s))
    look = Look(VE, lambda x, t: 0.5 * x, batch_of(samples(64)), weighting="karras")
    close(look.losses.terms["consistency"], look.losses.notes["distance"] * (1 / look.t**2 + 4))


def test_the_gradient_of_the_default_is_bounded_by_the_weight():
    """Pseudo-Huber's gradient has at most length 1, however wrong a sample is."""
    out = []

    def student(x, t):
        out.append((100 * x).requires_grad_())
        return out[-1]

    method = ConsistencyTraining()
    losses = method.loss(method.Nets(Exact(VE, student), None), batch_of(samples(256)), CLOCK)
    losses.terms["consistency"].sum().backward()
    weights = losses.terms["consistency"] / losses.notes["distance"]
    length = out[0].grad.norm(dim=1) / weights
    assert length.max() <= 1 + 1e-9
    assert length.max() > 0.99


def test_options_are_checked():
    with pytest.raises(ValueError, match="more than"):
        ConsistencyTraining(first=20, last=10)
    ConsistencyTraining(first=20, last=10, curriculum="fixed")  # where `first` has no part
    for wrong in (
        {"target": "ema"},
        {"target_decay": 1.0},
        {"weighting": "output"},
        {"target_masks": "some"},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Method.parse({"kind": "consistency_training"} | wrong)
    paper = Method.parse({"kind": "consistency_training", "distance": "lpips"} | FIRST_PAPER)
    assert paper.distance == Distance.parse({"kind": "lpips", "package": "piq"})
    assert ConsistencyTraining().density == LogNormal(-1.1, 2.0)
    assert ConsistencyTraining().distance == PseudoHuber(0.00054)
