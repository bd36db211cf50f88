"""Invertible distillation: two students that undo each other."""

import pytest
import torch
from tests.diffusion.cases import close, every, f64, rows
from tests.methods.chains import PROCESSES, TABLE, Chain, descend, samples
from tests.oracles import Gaussian, batch_of
from tests.stand_ins import GainTable, net

from fewstep.contracts.trial import teacher
from fewstep.data.digits import Digits
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.process import VarianceExploding
from fewstep.diffusion.samplers import FlowMap
from fewstep.diffusion.times import Auto, Trailing
from fewstep.learning.consistency import adjacent, at_or_below
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.losses import Squared
from fewstep.learning.method import Clock
from fewstep.methods.invertible_consistency import InvertibleConsistency
from fewstep.methods.multi_boundary import MultiBoundary
from fewstep.models.adapters import FullCopy

CLOCK = Clock(0, 100, 64)
VE = VarianceExploding()


def next_end(method, process):
    """t -> e, written from the paper's rule: the smallest boundary that is not below the next
    higher time.
    """
    grid, bounds = (
        method.reverse.times(process, method.reverse.bins).tolist(),
        method.reverse.ends(process).tolist(),
    )

    def ends(t):
        places = [
            max(1, min(range(len(grid)), key=lambda i, u=u: abs(grid[i] - u))) for u in t.tolist()
        ]
        return f64(*(min(b for b in bounds if b >= grid[i - 1]) for i in places))

    return ends


def exact(process, data):
    """The flow map itself, in both directions, for whatever landing it is told."""
    return net(process, lambda x, t, cond, s: process.x0_between(x, data.flow(x, t, s), t, s))


def nets_of(method, student, forward, data):
    return method.Nets(student, forward, net(data.process, data))


@pytest.mark.parametrize(("m", "expected"), [(1, [999, 19]), (4, [999, 779, 519, 259, 19])])
def test_the_way_up_starts_one_interval_above_the_end(m, expected):
    for times in (Auto(), Trailing("t_min")):
        method = InvertibleConsistency(MultiBoundary(segments=m, times=times))
        assert method.reverse.ends(TABLE, lifted=True).tolist() == expected
        assert method.sampler(CLOCK, "encoder").times(TABLE, m).tolist() == expected


@every("process", PROCESSES)
def test_the_chain_of_steps_up_has_zero_loss(process):
    """Its jumps end at 259, 519, 779, 999 of a table, whichever way the next time is reached."""
    method, data = InvertibleConsistency(), Gaussian(process, 0.3, 0.5)
    chain = Chain(data, method.reverse.times(process, 50), next_end(method, process))
    nets = nets_of(method, net(process, data), net(process, chain), data)
    found = method.encoder_loss(nets, batch_of(samples(512, data)), CLOCK).terms["encoder"]
    assert found.abs().max() < 1e-9
    chain.up[3:] += 1e-3
    assert (
        method.encoder_loss(nets, batch_of(samples(512, data)), CLOCK).terms["encoder"].max() > 1e-8
    )


def test_the_encoder_loss_by_value():
    """With the answer a a jump from t is a + e/t (x - a); samples are compared at the end's own
    scale.
    """
    method, data = InvertibleConsistency(MultiBoundary(distance=Squared())), Gaussian(VE, 0.3, 0.5)
    nets = nets_of(method, net(VE, data), net(VE, lambda x, *_: torch.tanh(x)), data)
    x0 = samples(512, data)
    found, batch = method.encoder_loss(nets, batch_of(x0), CLOCK).terms["encoder"], batch_of(x0)
    t, s = adjacent(method.reverse.times(VE, 50)[:-1], batch.draws, VE)
    batch.draws.uniform()  # the guidance scale
    x_s = x0 + s[:, None] * batch.noise()
    x_t = 0.3 + data.step_gain(s, t)[:, None] * (x_s - 0.3)
    t, s, end = (u[:, None] for u in (t, s, next_end(method, VE)(s)))
    jump = torch.tanh(x_s) + end / s * (x_s - torch.tanh(x_s))
    goal = torch.where(t == end, x_t, torch.tanh(x_t) + end / t * (x_t - torch.tanh(x_t)))
    close(found, ((jump - goal).square() / (1 + end**2))[:, 0], rtol=1e-9, atol=1e-14)
    assert (end > 1.5 * t).sum() > 100


def test_training_reaches_the_steps_up():
    one = MultiBoundary(segments=2, bins=6, distance=Squared())
    method, data = InvertibleConsistency(one), Gaussian(VE, 0.0, 0.5)
    grid, ends = one.times(VE, 6), next_end(InvertibleConsistency(one), VE)
    forward = GainTable(VE, grid, ends, start=2.0)
    nets = nets_of(method, net(VE, data), forward, data)
    chain = Chain(data, grid)
    t = grid[1:-1]
    best = chain.gain(t, ends(t))

    def loss(k):
        return (
            method.encoder_loss(nets, batch_of(samples(64, data, k), k), CLOCK)
            .terms["encoder"]
            .mean()
        )

    # Gains lie between 2 and 160: the rate fits the largest, and its fall to 0 lets the smallest
    # settle.
    forward.gains.data[chain.place(t), chain.place(ends(t))] = 0.7 * best
    descend([forward.gains], loss, 350, 0.02 * best.max().item())
    close(
        forward.gains[chain.place(t), chain.place(ends(t))].detach() / best,
        torch.ones(len(t)),
        rtol=0,
        atol=2e-3,
    )


def untold(process, data, ends):
    """A real student at its optimum: one answer at every t, which lands exactly at the end of t's
    own segment.
    """

    def answer(x, t, cond, s):
        t = t.contiguous()
        end = at_or_below(ends, t)
        end = torch.where(end == t, at_or_below(ends, t * (1 - 1e-9) - 1e-9), end)
        return process.x0_between(x, data.flow(x, t, end), t, end)

    return net(process, answer)


@every("process", PROCESSES)
@pytest.mark.parametrize("m", [1, 2, 4])
def test_the_exact_pair_is_stationary_and_decodes_what_it_encodes(process, m):
    """Neither network is told where a jump is to end. x0 counts as the sample at the lifted end, so
    it comes back as the flow carries it from there to the data: on a table that is index 19, and 1
    % of its spread.
    """
    method, data = InvertibleConsistency(MultiBoundary(segments=m)), Gaussian(process, 0.3, 0.5)
    student, forward = untold(process, data, method.reverse.ends(process)), exact(process, data)
    nets, x0 = nets_of(method, student, forward, data), samples(256, data)
    for update in method.updates(CLOCK)[2:]:
        (term,) = update.loss(nets, batch_of(x0), CLOCK).terms.values()
        assert term.abs().max() < 1e-9
    up, down = method.sampler(CLOCK, "encoder"), method.sampler(CLOCK)
    assert isinstance(up, FlowMap)
    low = up.times(process, up.steps)[-1].expand(256)
    noise = up.encoded(forward, process, x0, Cond())
    top, end = rows(process.t_max, 256), down.times(process, m)[-1].expand(256)
    close(
        noise * process.prior(torch.ones(1, 1)).double(),
        data.flow(x0, low, top),
        rtol=1e-6,
        atol=1e-7,
    )
    close(
        down(student, process, noise, Cond(), Draws(0, range(256))),
        data.flow(x0, low, end),
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("kind", "kept"), [("ve", 0.999992), ("vp", 0.999835), ("table", 0.974385), ("flow", 1.019559)]
)
def test_what_the_way_up_makes_of_the_spread_of_the_data(kind, kept):
    """x0 counts as the sample one interval above the clean end: decoding carries it from there to
    the data.
    """
    process, method = PROCESSES[kind], InvertibleConsistency()
    low, end = (method.reverse.ends(process, lifted)[-1:] for lifted in (True, False))
    x0 = torch.full((1, 1), 0.5, dtype=torch.float64)
    close(Gaussian(process, 0.0, 0.5).flow(x0, low, end) / x0, torch.full((1, 1), kept), rtol=1e-5)


def test_a_cycle_that_does_not_close_costs_its_distance():
    """A jump whose answer is wrong by 1 lands alpha_s - alpha_t sigma_s/sigma_t away."""
    method, data = (
        InvertibleConsistency(MultiBoundary(distance=Squared()), cycle=2.0),
        Gaussian(VE, 0.0, 0.5),
    )
    both = exact(VE, data)
    wrong = net(VE, lambda x, t, cond, s: both(x, t, cond, s) + 1)
    top, low = adjacent(method.reverse.ends(VE)[:-1], batch_of(samples(64, data)).draws, VE)
    (term,) = method.up_again_loss(
        nets_of(method, both, wrong, data), batch_of(samples(64, data)), CLOCK
    ).terms.values()
    close(term, 2 * (1 - top / low).square() / (1 + top**2), rtol=1e-6)

    # The student that is wrong by 1 wherever it starts: by 1 - end/top behind the jump up, by 1 -
    # end/low before it.
    ends, batch = method.reverse.ends(VE), batch_of(samples(64, data))
    top, low = adjacent(method.reverse.ends(VE, lifted=True), batch_of(samples(64, data)).draws, VE)
    end = at_or_below(ends, low)
    (term,) = method.down_again_loss(
        nets_of(method, wrong, both, data), batch, CLOCK
    ).terms.values()
    close(term, 2 * (end / low - end / top).square() / (1 + end**2), rtol=1e-6, atol=1e-12)


def test_the_lowest_cycle_is_compared_at_the_students_own_end():
    """There the jumps down are the answers; alpha² + sigma² is 1 at the data and 0.96 at the lifted
    end.
    """
    process = PROCESSES["flow"]
    method, data = (
        InvertibleConsistency(MultiBoundary(segments=1, distance=Squared())),
        Gaussian(process, 0.3, 0.5),
    )
    nets = nets_of(method, net(process, lambda x, *_: torch.tanh(x)), exact(process, data), data)
    x0 = samples(64, data)
    found, batch = (
        method.down_again_loss(nets, batch_of(x0), CLOCK).terms["down_again"],
        batch_of(x0),
    )
    batch.draws.integers(1)
    low = 0.02
    x = (1 - low) * x0 + low * batch.noise()
    moved = data.flow(x, rows(low, 64), rows(1, 64))
    close(found, 1.5 * (torch.tanh(moved) - torch.tanh(x)).square()[:, 0], rtol=1e-6, atol=1e-12)


def test_how_often_segments_are_drawn():
    """All but the lowest on the way down and up, all on the way up and down."""
    method, data = InvertibleConsistency(), Gaussian(VE)
    seen = []
    up = net(VE, lambda x, t, cond, s: seen.append((t, s)) or 0.5 * x)
    nets = nets_of(method, net(VE, lambda x, *_: 0.1 * x), up, data)
    ends, lifted = method.reverse.ends(VE), method.reverse.ends(VE, lifted=True)
    for loss, grid in ((method.up_again_loss, ends[:-1]), (method.down_again_loss, lifted)):
        seen.clear()
        loss(nets, batch_of(samples(256, data)), CLOCK)
        ((start, end),) = seen
        assert set(zip(start.tolist(), end.tolist())) == set(
            zip(grid[1:].tolist(), grid[:-1].tolist())
        )


def test_a_guided_student_that_cannot_be_asked_without():
    with pytest.raises(ValueError, match="cycle=0"):
        InvertibleConsistency(MultiBoundary(guidance=GuidanceRange(3.0, 3.0)))
    InvertibleConsistency(MultiBoundary(guidance=GuidanceRange(3.0, 3.0)), cycle=0.0)
    InvertibleConsistency(MultiBoundary(guidance=GuidanceRange(1.0, 3.0, embed=True)))


def test_the_way_up_needs_a_segment_of_its_own():
    model = teacher(VarianceExploding())
    for one in (MultiBoundary(segments=20, bins=20), MultiBoundary(segments=1, bins=1)):
        with pytest.raises(ValueError, match=r"segments|boundar"):
            InvertibleConsistency(one).build_nets(model, FullCopy().clones(model.denoiser))


def test_encoding_needs_noise_to_start_from():
    with pytest.raises(ValueError, match="t_min"):
        FlowMap(2).encoded(exact(VE, Gaussian(VE)), VE, torch.randn(2, 1), Cond())


def test_each_update_moves_its_own_network_alone():
    method = InvertibleConsistency(MultiBoundary(guidance=GuidanceRange(1.0, 4.0, embed=True)))
    digits = Digits(limit=64).dataset()
    model = teacher(VarianceExploding())
    nets = method.build_nets(model, FullCopy().clones(model.denoiser))
    assert nets.student.inputs == nets.encoder.inputs == ("label", "guidance")
    x0 = torch.randn(8, *digits.shape)
    updates = method.updates(CLOCK)
    assert [u.trains for u in updates] == [("student",), ("encoder",), ("encoder",), ("student",)]
    for update in updates:
        nets.student.zero_grad()
        nets.encoder.zero_grad()
        nets.teacher.requires_grad_(False)
        losses = update.loss(
            nets, batch_of(x0, cond=model.conditioner({"label": torch.arange(8)})), CLOCK
        )
        sum(term.sum() for term in losses.terms.values()).backward()
        for name in ("student", "encoder"):
            has = any(p.grad is not None and p.grad.any() for p in getattr(nets, name).parameters())
            assert has == (name in update.trains)
    assert len(InvertibleConsistency(cycle=0.0).updates(CLOCK)) == 2
    assert (
        len(InvertibleConsistency(MultiBoundary(segments=1)).updates(CLOCK)) == 3
    )  # its one segment is the lowest


def test_the_way_up_is_unguided_and_told_so():
    seen = []

    def answer(x, t, cond, s):
        seen.append(cond["guidance"].tolist())
        return 0.5 * x

    method = InvertibleConsistency(MultiBoundary(guidance=GuidanceRange(3.0, 9.0, embed=True)))
    nets = method.Nets(net(VE, answer), net(VE, answer), net(VE, lambda x, *_: 0.1 * x))
    for loss in (method.encoder_loss, method.up_again_loss, method.down_again_loss):
        loss(nets, batch_of(samples(4, Gaussian(VE))), CLOCK)
    assert seen == [[1.0] * 4] * 7
