"""Arithmetic by name: the loss scale, who is cast, recomputed activations, compiled networks."""

import copy
import dataclasses
import math
import random

import pytest
import torch
from tests.training.tiny import (
    Rhythm,
    Single,
    StopError,
    assert_same,
    bits,
    config,
    cut,
    model,
    part,
    real,
    state,
    stop_at,
    trainer,
)
from torch import nn

from fewstep.data.dataset import held_images
from fewstep.data.digits import Digits
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.draws import Draws
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.method import Method
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.methods.dmd2 import DMD2
from fewstep.methods.latent_consistency import LatentConsistency
from fewstep.methods.progressive import Progressive
from fewstep.models.dit import Dit
from fewstep.models.heads import Head
from fewstep.models.source import Fresh
from fewstep.models.unet import UNet
from fewstep.run import Run
from fewstep.training.checkpoint import Checkpoints
from fewstep.training.config import TrainerConfig
from fewstep.training.log import read_log
from fewstep.training.optimizers import AdamW, RAdam, Sgd
from fewstep.training.precision import MODES, LossScale, in_precision

CPU = torch.device("cpu")
METHODS = {
    name: cls()
    for name, cls in Method.kinds().items()
    if cls.__module__.startswith("fewstep.methods.")
}
METHODS |= {"dmd2": DMD2(fake_steps=1)}
COMPILED = METHODS | {
    "latent_consistency": LatentConsistency(guidance=GuidanceRange())
}  # the tiny model knows no "no label"
NETWORKS = {
    "unet": UNet(
        channels=8,
        multipliers=(1, 1),
        blocks=1,
        attention=(2,),
        head_channels=8,
        groups=4,
        dropout=0.3,
    ),
    "dit": Dit(width=16, depth=2, heads=2, dropout=0.3),
}


# The loss scale


def followed(pattern, interval):
    """(scale, good updates in a row) behind each update, of ours and of torch's."""
    ours, theirs = (
        LossScale(CPU),
        torch.amp.GradScaler("cpu", init_scale=65536.0, growth_interval=interval),
    )
    ours.patience = interval
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    found = []
    for bad in pattern:
        assert theirs.scale(torch.ones(())).item() == ours.scale.item()
        optimizer.zero_grad()
        theirs.scale(weight.sum() * (math.inf if bad else 1.0)).backward()
        theirs.step(optimizer)
        theirs.update()
        ours.note(torch.tensor(bad))
        found.append(
            (
                (ours.scale.item(), int(ours.good)),
                (theirs.get_scale(), theirs._get_growth_tracker()),
            )
        )
    return found


@pytest.mark.parametrize("interval", [1, 2, 3, 7])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_scale_moves_as_torchs_does(interval, share):
    rng = random.Random(f"{interval} {share}")
    found = followed([rng.random() < share for _ in range(100)], interval)
    assert [ours for ours, _ in found] == [theirs for _, theirs in found]
    assert len({scale for (scale, _), _ in found}) > 3


def test_the_scale_begins_and_waits_as_torchs_does():
    assert LossScale(CPU).scale.item() == torch.amp.GradScaler("cpu").get_scale()
    assert LossScale.patience == torch.amp.GradScaler("cpu").get_growth_interval()


def test_the_scale_does_not_grow_beyond_all_numbers():
    found = followed([False] * 120, 1)
    assert [ours for ours, _ in found] == [theirs for _, theirs in found]


@pytest.mark.parametrize("scaled", ["fp16", "fp16_teacher"])
@pytest.mark.parametrize("method", [Single(), Rhythm()], ids=["one optimizer", "two"])
def test_the_scale_alone_changes_no_bit(method, scaled, monkeypatch):
    """A power of two, multiplied and divided again: with networks in fp32 the run is that without a
    scale.

    fp16_teacher has one for losses whose gradient passes through a frozen network, such as a
    discriminator's.
    """
    monkeypatch.setattr(LossScale, "patience", 3)
    ends = []
    for precision in ("fp32", scaled):
        one = trainer(method, None, config(precision=precision))
        one.fit()
        ends.append(state(one))
    assert_same(*ends)
    assert {group: scale.scale.item() for group, scale in one.state.scales.items()} == {
        group: 65536.0 * 2 ** (12 * (2 if group == "fake" else 1) // 3)
        for group in one.state.roles.trains
    }


@pytest.mark.parametrize("update", [0, 1, 2])
def test_each_group_of_networks_has_a_scale_of_its_own(update):
    """An overflow halves the scale of the networks that the update trains."""
    one = trainer(Rhythm(poison=(4,), poisoned_update=update), None, config(precision="fp16"))
    one.fit()
    bad, good = ("student", "fake") if update == 2 else ("fake", "student")
    assert {group: scale.scale.item() for group, scale in one.state.scales.items()} == {
        bad: 32768.0,
        good: 65536.0,
    }
    behind = 7 if bad == "student" else 15 - update  # updates since the bad one
    assert int(one.state.scales[bad].good) == behind
    assert int(one.state.scales[good].good) == (12 if good == "student" else 24)


def scales(one):
    return {
        group: (bits(scale.scale), bits(scale.good)) for group, scale in one.state.scales.items()
    }


@pytest.mark.parametrize("step", [1, 4, 5, 6, 9])
def test_a_run_with_scales_that_was_cut_ends_with_the_same_bits(folder, monkeypatch, step):
    """Bad updates in steps 4 and 5; patience 3, so that the scales also grow, behind a cut and
    before it.
    """
    monkeypatch.setattr(LossScale, "patience", 3)
    method = Rhythm(poison=(4, 5), poisoned_update=1)
    straight = trainer(method, None, config(precision="fp16"))
    straight.fit()
    cut(method, folder, step, precision="fp16")
    store = Checkpoints(folder / "checkpoints")
    assert sorted(store.load(step).tensors["scale"]) == [
        "fake/good",
        "fake/scale",
        "student/good",
        "student/scale",
    ]
    again = trainer(method, folder, config(precision="fp16"))
    again.fit()
    assert_same(state(again), state(straight))
    assert scales(again) == scales(straight)
    assert len(set(scales(straight).values())) == 2


@pytest.mark.parametrize(
    "method", [DMD2(fake_steps=1), Progressive(start=8, end=2)], ids=["dmd2", "progressive"]
)
def test_a_run_in_fp16_that_was_cut_ends_with_the_same_bits(folder, monkeypatch, method):
    """Real autocast: what a checkpoint rounds or leaves out would show in the next product."""
    monkeypatch.setattr(LossScale, "patience", 2)
    chosen = config(steps=4, precision="fp16", max_skips=100)
    straight = real(method, None, chosen)
    straight.fit()
    with pytest.raises(StopError):
        real(method, folder, dataclasses.replace(chosen, save_every=2)).fit(stop_at(2))
    again = real(method, folder, chosen)
    again.fit()
    assert_same(state(again), state(straight))
    assert scales(again) == scales(straight)
    other = real(method, None, config(steps=4))
    other.fit()
    assert any((state(other)[k] != v).any() for k, v in part(state(again), "net/student").items())


def test_an_overflow_skips_the_step_and_halves_the_scale_until_it_fits():
    """Begun far too high: fp16's gradients are infinite, the weights wait, and nothing is lost but
    steps.
    """
    chosen = config(steps=24, precision="fp16", optimizer=Sgd(lr=1e-3), max_skips=99, clip=0.0)
    one = real(Progressive(start=4, end=2), None, chosen)
    one.state.scales["student"] = LossScale(CPU)
    one.state.scales["student"].scale.fill_(2.0**30)
    seen = [(2.0**30, state(one), False)]

    def look(step):
        scale, bad = one.state.scales["student"].scale, one.skips.flags[step.done - 1]
        seen.append((scale.item(), state(one), bool(bad)))

    one.fit(look)
    for (scale, before, _), (scale_after, after, bad) in zip(seen, seen[1:]):
        moved = any(bits(after[k]) != bits(v) for k, v in part(before, "net/student").items())
        assert moved is not bad
        assert scale_after == scale * (0.5 if bad else 1)
        assert all(v.isfinite().all() for v in after.values())
    bad = [skipped for _, _, skipped in seen[1:]]
    assert bad[0]
    assert 5 <= sum(bad) <= 20
    assert not any(bad[-3:])


# Who is cast


@pytest.mark.parametrize("precision", MODES)
def test_the_module_that_was_handed_in_stays_as_it_is(precision):
    """Only a frozen denoiser is cast, and it is a copy that is."""
    active, frozen = MODES[precision]
    handed_in = model(dropout=0.1).denoiser
    before = {key: bits(value) for key, value in handed_in.state_dict().items()}
    got = in_precision(handed_in, precision, kept=False)
    assert {key: bits(value) for key, value in handed_in.state_dict().items()} == before
    assert {p.dtype for p in got.parameters()} == {frozen or torch.float32}
    assert got.autocast == frozen
    assert (got is handed_in) is (frozen is None)
    if frozen:
        assert handed_in.autocast is None
        for name, value in got.network.state_dict().items():
            assert torch.equal(value, handed_in.network.state_dict()[name].to(frozen))
        mine = {p.data_ptr() for p in handed_in.parameters()}
        assert not mine & {p.data_ptr() for p in got.parameters()}
    handed_in.autocast = torch.bfloat16  # its owner's choice
    in_precision(handed_in, precision, kept=False)
    assert handed_in.autocast == torch.bfloat16
    kept = in_precision(handed_in, precision, kept=True)
    assert kept is handed_in
    assert kept.autocast == active
    assert {key: bits(value) for key, value in handed_in.state_dict().items()} == before


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("precision", MODES)
def test_what_is_no_denoiser_is_left_alone(precision, kept):
    head = Head(6)
    before = {key: bits(value) for key, value in head.state_dict().items()}
    assert in_precision(head, precision, kept) is head
    assert {key: bits(value) for key, value in head.state_dict().items()} == before


@pytest.mark.parametrize("precision", MODES)
def test_in_which_arithmetic_the_networks_of_a_method_run(precision):
    """The products of each network, by the dtype that its last layer gives."""
    one = real(DMD2(fake_steps=1), None, config(steps=1, precision=precision))
    active, frozen = MODES[precision]
    seen = {}
    for name, module in one.state.modules.items():
        if isinstance(module, Denoiser):
            module.network.last.register_forward_hook(
                lambda m, i, out, name=name: seen.update({name: out.dtype})
            )
    one.fit()
    active, frozen = active or torch.float32, frozen or torch.float32
    assert seen == {"student": active, "fake": active, "teacher": frozen}
    for name, module in one.state.modules.items():
        assert {p.dtype for p in module.parameters()} == {
            frozen if name == "teacher" else torch.float32
        }
    saved = [value for tensors in one.state.saved().values() for value in tensors.values()]
    assert {value.dtype for value in saved} == {
        torch.float32
    }  # weights, averages, optimizers, scales
    assert one.state.exported("student").network.last.weight.dtype == torch.float32


# Activations computed again


def teacher_of(network, images):
    """A teacher with weights everywhere: a fresh one is zero in its last layers and would hide
    mistakes.
    """
    made = Fresh(network=network).load(images.space, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in made.denoiser.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return made


def gradients(method, network, images, **options):
    """The gradients of every update of a step, and how often a block ran."""
    of = teacher_of(network, images)
    chosen = TrainerConfig(steps=4, batch=4, device="cpu", **options)
    one = Run(Digits(), method, trainer=chosen).prepared(images, model=of).trainer
    runs, found = [], []
    student = one.nets.student.network
    block = student.middle_block if isinstance(network, UNet) else student.blocks[1]
    block.register_forward_pre_hook(
        lambda *_: runs.append(1)
    )  # a second pass ends inside, where it has enough
    clock = one.clock(1)
    for i, update in enumerate(method.updates(clock)):
        one.step.let_learn(update.trains)
        one.step.backward(update, clock, i, i)
        for name in update.trains:
            found += [
                (name, key, p.grad)
                for key, p in one.state.modules[name].named_parameters()
                if p.grad is not None
            ]
        one.state.forget_gradients(update.trains)
    return found, len(runs)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (32, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return held_images(pixels, torch.arange(32) % 3, 3, torch.arange(32))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("network", NETWORKS)
def test_with_dropout_recomputed_activations_are_the_same(name, network, images):
    """The masks of the second pass are those of the first: the gradients agree bit by bit, in every
    update.
    """
    plain, runs = gradients(METHODS[name], NETWORKS[network], images)
    again, more = gradients(METHODS[name], NETWORKS[network], images, checkpointing=True)
    assert len(plain) == len(again) > 20
    for (net, key, expected), (_, _, found) in zip(plain, again):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7, msg=f"{net}/{key}")
    assert more > runs  # they were computed again


@pytest.mark.parametrize("network", NETWORKS)
def test_there_was_dropout_in_that(network, images):
    plain, _ = gradients(METHODS["diffusion"], NETWORKS[network], images)
    still, _ = gradients(METHODS["diffusion"], without_dropout(NETWORKS[network]), images)
    assert any(not torch.allclose(a[2], b[2], rtol=1e-2, atol=1e-5) for a, b in zip(still, plain))


def without_dropout(network):
    return type(network)(**{**network.__dict__, "dropout": 0.0})


# Compiled networks


def test_compiling_is_refused_with_sharding():
    with pytest.raises(ValueError, match="compile"):
        TrainerConfig(compile=True, sharding="full")
    with pytest.raises(ValueError, match="compile"):
        TrainerConfig.parse({"compile": True, "sharding": "full"})
    assert TrainerConfig(compile=True).compile
    assert TrainerConfig(sharding="full").sharding == "full"


def test_every_network_is_compiled_and_the_exported_one_is_not(monkeypatch):
    """Through the compiled callable, and only there: what is exported is saved and loaded without
    it.
    """
    calls = []

    def compiled(forward):
        def run(*arguments):
            calls.append(forward.__self__)
            return forward(*arguments)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    one, plain = (
        real(ConsistencyDistillation(bins=4), None, config(steps=2, compile=c))
        for c in (True, False)
    )
    one.fit()
    assert {id(net) for net in calls} == {
        id(one.state.modules[n].network) for n in ("student", "target", "teacher")
    }
    assert one.state.exported("student")._compiled is None
    plain.fit()
    assert_same(state(one), state(plain))


def test_features_are_read_from_the_network_that_is_not_compiled():
    """As its docstring says: in a compiled network the hooks of a tap do not fire, and DMD2 ends in
    a KeyError.
    """
    denoiser = model().denoiser
    x, t = torch.randn(4, 1, 2, 2), torch.ones(4, dtype=torch.float64)
    _, expected = denoiser.features(x, t, Cond(), ["last"])
    denoiser._compiled = copy.deepcopy(denoiser.network).forward  # has no hooks, and never will
    _, found = denoiser.features(x, t, Cond(), ["last"])
    assert torch.equal(found["last"], expected["last"])


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_compiled_run_has_the_same_losses(folder, name):
    """Three steps with PyTorch's own compiler: losses, gradients' norms and weights agree to
    rounding.
    """
    torch._dynamo.reset()
    runs, lines = [], []
    for compiled in (False, True):
        at = folder / str(compiled)
        one = real(COMPILED[name], at, config(steps=3, compile=compiled, optimizer=Sgd(lr=1e-2)))
        one.fit()
        runs.append(state(one))
        lines.append(read_log(at / "log.jsonl"))
    assert len(lines[0]) == 3
    for plain, compiled in zip(*lines):
        assert plain.keys() == compiled.keys()
        assert [compiled[key] for key in plain] == pytest.approx(
            list(plain.values()), rel=1e-4, abs=1e-6
        )
    for key, value in runs[0].items():
        torch.testing.assert_close(runs[1][key], value, rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.parametrize(
    "spec", [AdamW(lr=1e-3), RAdam(lr=1e-3), Sgd(lr=1e-2)], ids=lambda s: type(s).__name__
)
def test_unscaled_gradients_are_those_that_are_clipped_and_stepped(spec):
    """With a limit far below the scaled norm the step is that of fp32: the scale is divided out
    before.
    """
    ends = []
    for precision in ("fp32", "fp16"):
        one = trainer(
            Single(dropout=0.0),
            None,
            config(steps=4, optimizer=spec, clip=1e-3, precision=precision),
        )
        one.fit()
        ends.append(state(one))
    assert_same(*ends)


def test_draws_are_the_same_in_every_arithmetic():
    """What a seed gives does not depend on the precision: two runs differ by rounding alone."""
    seen = {}
    for precision in MODES:
        one = real(ConsistencyDistillation(bins=4), None, config(steps=1, precision=precision))
        student = one.nets.student
        student.register_forward_pre_hook(
            lambda m, i, precision=precision: seen.setdefault(precision, i)
        )
        one.fit()
    for x, t, _ in seen.values():
        assert bits(x.detach()) == bits(seen["fp32"][0].detach())
        assert bits(t) == bits(seen["fp32"][1])
    assert Draws(0, range(2)).normal(3).dtype == torch.float32
