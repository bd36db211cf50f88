"""Students are trained where their sampling starts: all methods, all processes."""

import math

import pytest
import torch
from tests.diffusion.cases import rows
from tests.methods.students import samples
from tests.oracles import Gaussian, batch_of
from tests.stand_ins import Exact, answering
from tests.test_contracts import METHODS

from fewstep.choice import replaced
from fewstep.contracts.trial import teacher
from fewstep.diffusion.densities import LogitNormal, LogNormal, LogStudent, UniformTime, Usual
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.process import (
    RectifiedFlow,
    Trig,
    VarianceExploding,
    VariancePreserving,
    VariancePreservingTable,
)
from fewstep.learning.batch import Batch
from fewstep.learning.method import Clock
from fewstep.learning.weights import by_noise, interval_weight
from fewstep.methods.continuous_consistency import ContinuousConsistency
from fewstep.methods.diffusion import Diffusion
from fewstep.methods.easy_consistency import EasyConsistency
from fewstep.models.adapters import FullCopy

VE, TABLE = VarianceExploding(), VariancePreservingTable()
NOISE = [RectifiedFlow(), Trig(), RectifiedFlow(t_max=0.9999)]
PROCESSES = [VE, VariancePreserving(), TABLE, RectifiedFlow(), Trig()]
ROWS = 4096
ON_DATA = ("diffusion", "guided_distillation")  # at times of the usual density
# Adversarial terms read features, which the stand-in for the network does not have.
OPTIONS = {"dmd2": {"gan": 0.0, "gan_fake": 0.0}, "phased_consistency": {"adversarial": 0.0}}


def kind(value):
    return f"{type(value).__name__}-{value.t_max:g}"


def trained_times(method, process):
    """The largest time at which the student is asked with a gradient, in all phases."""
    model = teacher(process)
    model.denoiser.network.forward = lambda x, t, cond, s=None: 0.1 * x
    method = method.towards(model)
    nets = method.build_nets(model, FullCopy().clones(model.denoiser))
    seen = []

    def note(module, given):
        if torch.is_grad_enabled():
            seen.append(given[1].max())

    nets.student.register_forward_pre_hook(note)
    labels = torch.arange(ROWS) % 10
    x0 = samples(ROWS, d=64).view(ROWS, 1, 8, 8).float()
    for phase in range(len(method.phases(100))):
        clock = Clock(99, 100, ROWS, phase, 10, 20)
        for update in method.updates(clock):
            if "student" in update.trains:
                cond = model.conditioner({"label": labels})
                update.loss(nets, Batch(cond, Draws(3, range(ROWS)), (1, 8, 8), x0), clock)
    return max(seen), method.sampler(Clock(99, 100, ROWS, phase, 10, 20))


@pytest.mark.parametrize("process", PROCESSES, ids=kind)
@pytest.mark.parametrize("name", METHODS)
def test_training_and_sampling_meet(name, process):
    """To the time itself where sampling starts at pure noise, to an index close to a table's last,
    else within 0.03 of the angle, as EDM's own students do.
    """
    method = replaced(METHODS[name](), **OPTIONS.get(name, {}))
    last, sampler = trained_times(method, process)
    first = sampler.times(process, sampler.steps)[:1]
    if name in ON_DATA and process in NOISE:
        assert abs(process.angle(first) - process.angle(last[None])) < 1e-3
    elif process.discrete:
        assert last > first - 8
    elif process.level(first) > 200:
        assert last == first
    elif name not in ON_DATA or process != VE:  # whose published density has 2 ppm above 80
        assert abs(process.angle(first) - process.angle(last[None])) < 0.03


@pytest.mark.parametrize("process", NOISE, ids=kind)
@pytest.mark.parametrize(
    ("density", "mean", "std"),
    [(LogNormal(-1.1, 2.0), -1.1, 2.0), (LogitNormal(-0.6, 1.6), -0.6, 1.6)],
)
def test_what_lies_above_level_80_is_at_pure_noise(process, density, mean, std):
    t = density(process, Draws(0, range(200_000)))
    share = 0.5 * math.erfc((math.log(80.0) - mean) / std / 2**0.5)
    at_end = t == process.t_max
    assert at_end.double().mean().item() == pytest.approx(share, rel=0.2)
    assert process.level(t[~at_end]).max() < 80


def test_edms_densities_are_not_touched():
    """All levels that are drawn are there, whatever t_max is."""
    draws = Draws(0, range(4096))
    level = torch.exp(-1.1 + 2.0 * draws.normal().double())
    assert level.max() > 80
    torch.testing.assert_close(LogNormal(-1.1, 2.0)(VE, Draws(0, range(4096))), level)


def test_the_heavy_tail_reaches_pure_noise():
    t = LogStudent()(RectifiedFlow(), Draws(0, range(20_000)))
    assert 0.02 < (t == 1).double().mean() < 0.12


@pytest.mark.parametrize("process", PROCESSES, ids=kind)
def test_the_usual_density(process):
    """EDM's for EDM, bit by bit; even times elsewhere, as far as sampling goes."""
    density = LogNormal() if process == VE else UniformTime(whole=process.discrete)
    found = Usual()(process, Draws(0, range(20_000)))
    assert torch.equal(found, density(process, Draws(0, range(20_000))))
    if process != VE:
        assert found.max() > process.t_max - 1e-3 * (process.t_max - process.t_min)
    assert Diffusion().density == Usual()


@pytest.mark.parametrize("process", [RectifiedFlow(), Trig()], ids=kind)
def test_a_time_at_pure_noise_teaches(process):
    """Intervals there are as long as those from level 80, and weights as large."""
    t, s = rows(process.t_max, 1), process.at_level(rows(60.0, 1))
    assert interval_weight("level_gap", process, t, s).item() == pytest.approx(1 / 20, rel=1e-6)
    easy = EasyConsistency()
    r = easy.lower(process, t, 0.5)
    assert process.level(r).item() == pytest.approx(40, rel=1e-6)
    for name in ("snr", "root_snr", "snr_plus_one", "truncated_snr", "karras"):
        ours = by_noise(name, process, t).item()
        assert ours == pytest.approx(by_noise(name, VE, rows(80.0, 1)).item(), rel=1e-6)
    method = ContinuousConsistency(adaptive=False, density=LogNormal(9.0, 0.1))
    data = Gaussian(process, 0.0, 0.5)
    student = answering(process, lambda x, t, s: 0.3 * x * (1 + t[:, None]))
    notes = method.loss(
        method.Nets(student, None, Exact(process, data)), batch_of(samples(64)), Clock(99, 100, 64)
    ).notes
    assert (notes["tangent"] > 1e-6).all()
