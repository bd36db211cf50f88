"""Inductive moment matching: the map, the times, the statistic of a group, and where it comes to
rest.
"""

import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from tests.methods.students import descend, samples
from tests.oracles import Gaussian, batch_of
from tests.stand_ins import JumpGain, answering

from fewstep.contracts.trial import Trial
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.parameterization import Edm
from fewstep.diffusion.process import RectifiedFlow, VarianceExploding, VariancePreservingTable
from fewstep.learning.batch import Batch
from fewstep.learning.discrepancy import discrepancy, partners
from fewstep.learning.method import Clock, Method, Update
from fewstep.learning.tangent import rectified
from fewstep.methods.moment_matching import MomentMatching

VE = VarianceExploding()
PROCESSES = [VE, VariancePreservingTable(), RectifiedFlow()]
CLOCK = Clock(0, 100, 64)


def kind(value):
    return type(value).__name__


def test_the_step_of_an_edm_student_is_the_published_map():
    """f = (α_t α_s + σ_t σ_s)/q² x - (α_s σ_t - α_t σ_s)/q σ_d F, q² = α_t² + σ_t², where our F has
    the other sign.
    """
    d, process = 0.5, RectifiedFlow()
    t, s = (
        torch.tensor([0.3, 0.9], dtype=torch.float64),
        torch.tensor([0.1, 0.9], dtype=torch.float64),
    )
    x = torch.tensor([[0.4], [-1.2]], dtype=torch.float64)
    net = Denoiser(JumpGain(process), process, Edm(d))
    made = process.step(x, net(x, t, Cond(), s), t, s)
    (a_t, a_s), (n_t, n_s) = (1 - t, 1 - s), (t / d, s / d)  # noise in units of sigma_data
    q = torch.hypot(a_t, n_t)[:, None]
    raw = net.network(x / (d * q), t, Cond(), s)
    skip, out = (a_t * a_s + n_t * n_s)[:, None] / q**2, (a_s * n_t - a_t * n_s)[:, None] / q
    torch.testing.assert_close(made, skip * x + out * d * raw)
    assert torch.equal(made[1], x[1])  # f from t to t


@pytest.mark.parametrize("process", PROCESSES, ids=kind)
def test_the_times_of_a_group(process):
    """t > r >= s, the same in a group, uniform in rectified time; t and r lie 160/2^k apart in
    levels, in every process; what lies above level 160 is t_max, of which no more is told.
    """
    method = MomentMatching(samples=4, k=6.0)
    batch = batch_of(samples(8192))
    t, r, s = method.times(Denoiser(JumpGain(process), process, Edm()), batch)
    for u in (t, r, s):
        assert torch.equal(u, u.view(-1, 4)[:, :1].expand(-1, 4).flatten())
        assert ((process.t_min * (1 - 1e-9) <= u) & (u <= process.t_max)).all()
    assert (t > r).all()
    assert (r >= s * (1 - 1e-9)).all()
    late, ends = (
        rectified(process, u, 0.5) for u in (t, torch.tensor([process.t_min, process.t_max]))
    )
    low, high = ends.tolist()
    quantiles = torch.quantile(late[::4], torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    assert ((quantiles - low) / (high - low)).tolist() == pytest.approx([0.25, 0.5, 0.75], abs=0.04)
    level = [torch.tan(process.angle(u)) / 0.5 for u in (t, r, s)]
    level[0], step = level[0].clamp(max=160.0) if high == 1 else level[0], (160 - 0.004) / 64
    apart = level[0] - level[1]
    free = level[1] > level[2] * (1 + 1e-6)
    torch.testing.assert_close(
        apart[free], torch.full_like(apart[free], step), rtol=1e-5, atol=1e-6
    )
    assert (apart <= step * (1 + 1e-6)).all()
    assert free.any()
    assert not free.all()


def statistic(method, y_t, y_r, width, cond=None):
    n = len(y_t)
    batch = Batch(cond or Cond(), Draws(0, range(n)), (y_t.shape[1],), y_t)
    return discrepancy(y_t, y_r, width, *partners(batch, method.samples))


def test_the_statistic_of_a_group_by_hand():
    method = MomentMatching(samples=3)
    y_t, y_r = torch.randn(2, 6, 2, dtype=torch.float64)
    width = torch.full((6,), 0.7, dtype=torch.float64)

    def k(a, b):
        return math.exp(-(a - b).norm().item() / (2 * 0.7))

    for g in range(2):
        rows = range(3 * g, 3 * g + 3)
        expected = (
            sum(
                k(y_t[i], y_t[j]) + k(y_r[i], y_r[j]) - 2 * k(y_t[i], y_r[j])
                for i in rows
                for j in rows
            )
            / 9
        )
        assert statistic(method, y_t, y_r, width)[3 * g : 3 * g + 3].mean().item() == pytest.approx(
            expected
        )


def test_laws_of_the_statistic():
    """Zero for equal samples, never negative over a group, blind to the order within it, and to
    other groups.
    """
    method = MomentMatching(samples=4)
    width = torch.full((32,), 0.3, dtype=torch.float64)
    y_t, y_r = torch.randn(2, 32, 3, dtype=torch.float64)
    found = statistic(method, y_t, y_r, width).view(8, 4)
    assert (found.mean(1) > 0).all()
    assert statistic(method, y_t, y_t, width).abs().max() < 1e-15
    order = torch.cat([torch.randperm(4) + 4 * g for g in range(8)])
    torch.testing.assert_close(
        statistic(method, y_t[order], y_r[order], width), found.flatten()[order]
    )
    other = statistic(method, y_t, y_r, width).view(8, 4).mean(1)
    torch.testing.assert_close(
        statistic(method, y_t, y_r[torch.cat([torch.randperm(4) + 4 * g for g in range(8)])], width)
        .view(8, 4)
        .mean(1),
        other,
    )
    changed = torch.cat([y_t[:28], y_t[28:] + 5])
    assert torch.equal(statistic(method, changed, y_r, width)[:28], found.flatten()[:28])


def test_one_sample_is_a_consistency_loss():
    """M = 1: 2 - 2 exp(-‖y_t - y_r‖/(d |c|)), a distance of the two ends."""
    method = MomentMatching(samples=1)
    y_t, y_r = torch.randn(2, 8, 3, dtype=torch.float64)
    width = torch.rand(8, dtype=torch.float64) + 0.1
    expected = 2 - 2 * torch.exp(-(y_t - y_r).norm(dim=1) / (3 * width))
    torch.testing.assert_close(statistic(method, y_t, y_r, width), expected)


def test_rows_of_different_labels_do_not_meet():
    method = MomentMatching(samples=4)
    y_t, y_r = torch.randn(2, 4, 3, dtype=torch.float64)
    width = torch.full((4,), 0.3, dtype=torch.float64)
    labels = Cond({"label": torch.tensor([1, 2, 1, 3])}, {"label": torch.full((4,), 9)})
    found = statistic(method, y_t, y_r, width, labels)
    assert found[1].item() == pytest.approx(
        (2 - 2 * torch.exp(-(y_t[1] - y_r[1]).norm() / 0.9)).item() / 4
    )
    moved = torch.cat([y_t[:2], y_t[2:3] + 1, y_t[3:]])
    again = statistic(method, moved, y_r, width, labels)
    assert again[0] != found[0]
    assert torch.equal(again[[1, 3]], found[[1, 3]])


def test_a_pass_on_whole_groups_is_a_part_of_the_whole():
    """Rows 8 … 15 alone: the same times, noise and losses, label or not."""
    process, method = VE, MomentMatching(samples=4)
    net = Denoiser(JumpGain(process), process, Edm())
    x0, labels = samples(16), torch.arange(16) % 2

    def losses(rows):
        cond = Cond({"label": labels[rows.start : rows.stop]})
        return method.loss(
            method.Nets(net), Batch(cond, Draws(3, rows), (1,), x0[rows.start : rows.stop]), CLOCK
        ).terms["matching"]

    torch.testing.assert_close(losses(range(8, 16)), losses(range(16))[8:])
    assert (
        losses(range(6, 13)).isfinite().all()
    )  # cut groups: fewer partners, where a loss is only looked at


def test_the_weight_is_half_the_sigmoid_times_the_rate_of_the_log_snr():
    method = MomentMatching(a=2.0, b=4.0)
    level = torch.tensor([0.05, 0.5, 1.0, 20.0], dtype=torch.float64) * 0.5
    t = (level / 0.5 / (1 + level / 0.5)).requires_grad_()
    snr = torch.log((1 - t) ** 2 / t**2)
    (rate,) = torch.autograd.grad(snr.sum(), t)
    t = t.detach()
    expected = (
        0.5 * torch.sigmoid(4.0 - snr.detach()) * -rate * (1 - t) ** 2 / ((1 - t) ** 2 + t**2)
    )
    student = Denoiser(JumpGain(VE), VE, Edm())
    torch.testing.assert_close(method.weight(student, level), expected)


@pytest.mark.parametrize("process", PROCESSES, ids=kind)
def test_the_exact_map_matches_in_distribution_and_wrong_ones_do_not(process):
    """E[MMD²] of the unbiased kind is 0: without the diagonal, k(y, y) = 1 and the pairs of one
    noise.
    """
    data, m = Gaussian(process, 0.0, 0.5), 64
    method = MomentMatching(samples=m, k=1.0)
    found = []
    for scale in (1.0, 1.3):
        total = []
        for seed in range(24):
            batch = batch_of(samples(256, seed), seed)
            t, r, s = method.times(Denoiser(JumpGain(process), process, Edm()), batch)
            noise = batch.noise()
            y_t, y_r = (
                (scale if u is t else 1.0)
                * data.flow(process.add_noise(batch.data, noise, u), u, s)
                for u in (t, r)
            )
            width = data.spread(s)
            parts = discrepancy(y_t, y_r, width, *partners(batch, m))
            own = (2 - 2 * torch.exp(-(y_t - y_r).norm(dim=1) / width)) / m
            total.append((parts - own).mean())
        values = torch.stack(total)
        found.append((values.mean().item(), values.std().item() / 24**0.5))
    (right, error), (wrong, _) = found
    assert abs(right) < 4 * error + 1e-4
    assert wrong > 5 * error
    assert wrong > 5e-3


@pytest.mark.parametrize("process", PROCESSES, ids=kind)
def test_the_loss_by_hand(process):
    """w(t) MMD² of y_t = a x_t + b f(x_t, t, s) and y_r, with one noise in x_t and x_r and c =
    b·out(t), where a = σ_s/σ_t, b = α_s - α_t a and out = σ_d σ_t/√(σ_d² α_t² + σ_t²); the mean
    over a group is the group's.
    """
    method, calls = MomentMatching(samples=4, k=2.0, sigma_data=0.6), []
    student = Denoiser(JumpGain(process), process, Edm(0.3))
    student.register_forward_pre_hook(lambda module, args: calls.append(args))
    x0 = samples(16, d=2)
    found = method.loss(method.Nets(student), batch_of(x0), CLOCK).terms["matching"].detach()
    ((x_t, t, cond, s), (x_r, r, _, end)) = calls
    assert torch.equal(s, end)
    noise = (x_t - process.alpha(t)[:, None] * x0) / process.sigma(t)[:, None]
    torch.testing.assert_close(
        x_r,
        process.alpha(r)[:, None] * x0 + process.sigma(r)[:, None] * noise,
        rtol=1e-5,
        atol=1e-6,
    )
    assert len(noise.flatten().unique()) == 32

    def landed(x, u):
        a = process.sigma(s) / process.sigma(u)
        b = process.alpha(s) - process.alpha(u) * a
        return a[:, None] * x + b[:, None] * student(x, u, cond, s), b

    (y_t, b), (y_r, _) = landed(x_t, t), landed(x_r, r)
    sigma = process.sigma(t)
    c = b * 0.3 * sigma / torch.hypot(0.3 * process.alpha(t), sigma)
    for g in range(4):
        rows = range(4 * g, 4 * g + 4)

        def k(a, b, g=g):
            return torch.exp(-(a - b).norm() / (2 * c[4 * g].abs()))

        pairs = [(i, j) for i in rows for j in rows]
        expected = (
            sum(k(y_t[i], y_t[j]) + k(y_r[i], y_r[j]) - 2 * k(y_t[i], y_r[j]) for i, j in pairs)
            / 16
        )
        expected = (method.weight(student, t)[4 * g] * expected).item()
        assert found[rows].mean().item() == pytest.approx(expected, rel=1e-6, abs=0)
        assert expected > 0


def test_both_passes_have_the_same_masks():
    class Dropping(torch.nn.Dropout):
        inputs = ("s",)

        def forward(self, x, t, cond, s=None):
            return super().forward(torch.ones_like(x))

    masks, network = [], Dropping(0.5)
    network.register_forward_hook(lambda module, args, out: masks.append(out))
    method = MomentMatching(samples=4)
    method.loss(method.Nets(Denoiser(network, VE, Edm())), batch_of(samples(200, d=20)), CLOCK)
    assert torch.equal(*masks)
    assert 0.4 < (masks[0] == 0).double().mean() < 0.6


def test_only_the_later_sample_carries_a_gradient():
    process, method, outs = VE, MomentMatching(samples=2), []

    def answer(x, t, s):
        outs.append(torch.tanh(x))
        if torch.is_grad_enabled():
            outs[-1].requires_grad_().retain_grad()
        return outs[-1]

    method.loss(method.Nets(answering(process, answer)), batch_of(samples(16)), CLOCK).terms[
        "matching"
    ].sum().backward()
    assert outs[0].grad is not None
    assert outs[0].grad.isfinite().all()
    assert not outs[1].requires_grad


def test_training_brings_jumps_to_the_spread_of_the_data():
    """N(0, 0.5²): one jump has the spread of the exact map, where a first-order step keeps less
    than a third of it.

    The V-statistic's diagonal, one M-th of the whole, draws y_t to the y_r of the same noise and so
    to the mean: 0.89 to 0.92 of the spread with M = 16, 0.94 to 0.98 with M = 64.
    """
    process = VarianceExploding(0.02, 20.0)
    data, method = Gaussian(process, 0.0, 0.5), MomentMatching(samples=64, k=4.0)
    network, steps = JumpGain(process), 400
    net = Denoiser(network, process, Edm())
    descend(
        network.parameters(),
        lambda k: (
            method.loss(method.Nets(net), batch_of(samples(256, k), k), CLOCK)
            .terms["matching"]
            .mean()
        ),
        steps,
        1e-2,
    )
    t = torch.tensor([1.0, 4.0, 15.0], dtype=torch.float64)
    s = torch.full_like(t, 0.1)
    x = data.spread(t)[:, None]
    made = process.step(x, net(x, t, Cond(), s), t, s)[:, 0] / data.spread(s)
    first_order = process.step(x, data(x, t), t, s)[:, 0] / data.spread(s)
    assert first_order.min() < 0.3
    assert made.tolist() == pytest.approx([1, 1, 1], abs=0.1)


# Groups


def test_draws_of_a_group_are_those_of_its_first_row():
    whole = Draws(5, range(32)).grouped(4).uniform()
    assert torch.equal(whole, whole[::4].repeat_interleave(4))
    assert len(whole.unique()) == 8
    assert torch.equal(Draws(5, range(7, 30)).grouped(4).uniform(), whole[7:30])


@pytest.mark.parametrize("micro", [2, 6, 7])
def test_passes_that_cut_groups_are_refused(micro):
    with pytest.raises(ValueError, match="moment_matching compares 4 rows"):
        Trial(MomentMatching).prepared(micro_batch=micro)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("count", "classes", "columns", "said"),
    [
        (4, 10, {"label"}, "4 rows with 10 labels"),
        (16, 10, {"label"}, ""),
        (4, 0, set(), ""),
        (64, 0, {"text"}, "64 rows with text"),
    ],
)
def test_groups_that_are_too_small_for_the_conditions_are_said(count, classes, columns, said):
    conditioner = SimpleNamespace(columns=columns)
    model = SimpleNamespace(classes=classes, conditioner=conditioner)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        MomentMatching(samples=count).build_nets(model, lambda name, inputs: None)
    assert [said in str(one.message) for one in found] == ([True] if said else [])


def test_where_memory_runs_out_whole_groups_remain():
    trainer = Trial(MomentMatching).prepared().trainer
    loss, most = trainer.method.loss, 4

    def scarce(nets, batch, clock):
        if len(batch.draws.rows) > most:
            raise MemoryError
        return loss(nets, batch, clock)

    update = Update(("student",), scarce)
    trainer.step(update, trainer.clock(0), 0, 0)
    assert trainer.step.micro == 4
    most = 2
    with pytest.raises(MemoryError):
        trainer.step(update, trainer.clock(0), 0, 0)


def test_options():
    for wrong in ({"samples": 0}, {"k": -1}, {"sigma_data": 0}):
        with pytest.raises(ValueError, match="1 validation error"):
            Method.parse({"kind": "moment_matching", **wrong})
    assert MomentMatching(samples=8).group() == 8
