"""Arithmetic by name: who is cast, recomputed activations, compiled networks."""

import copy

import pytest
import torch
from tests.training.tiny import (
    assert_same,
    bits,
    config,
    model,
    real,
    state,
)

from fewstep.data.dataset import held_images
from fewstep.data.digits import Digits
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.draws import Draws
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.method import Method
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.methods.dmd2 import DMD2
from fewstep.methods.guided_distillation import GuidedDistillation
from fewstep.methods.latent_consistency import LatentConsistency
from fewstep.models.dit import Dit
from fewstep.models.heads import Head
from fewstep.models.source import Fresh, Saved
from fewstep.models.unet import UNet
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.log import read_log
from fewstep.training.optimizers import Sgd
from fewstep.training.precision import MODES, in_precision

CPU = torch.device("cpu")
METHODS = {
    name: cls()
    for name, cls in Method.kinds().items()
    if cls.__module__.startswith("fewstep.methods.")
}
METHODS |= {"dmd2": DMD2(fake_steps=1)}
COMPILED = METHODS | {
    "latent_consistency": LatentConsistency(guidance=GuidanceRange()),
    "guided_distillation": GuidedDistillation(guidance=GuidanceRange(3.0, 3.0)),
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
@pytest.mark.parametrize(
    "method", [DMD2(fake_steps=1), ConsistencyDistillation(bins=4)], ids=["dmd2", "cd"]
)
def test_in_which_arithmetic_the_networks_of_a_method_run(method, precision):
    """The products of each network, by the dtype that its last layer gives. A twin computes as
    those that train.
    """
    one = real(method, None, config(steps=1, precision=precision))
    active, frozen = MODES[precision]
    seen = {}
    for name, module in one.state.modules.items():
        if isinstance(module, Denoiser):
            module.network.last.register_forward_hook(
                lambda m, i, out, name=name: seen.update({name: out.dtype})
            )
    one.fit()
    active, frozen = active or torch.float32, frozen or torch.float32
    twin = "teacher" in one.state.roles.twins
    assert twin is isinstance(method, DMD2)
    for name in seen:
        assert seen[name] == (frozen if name == "teacher" and not twin else active)
    for name, module in one.state.modules.items():
        cast = name == "teacher" and not twin
        assert {p.dtype for p in module.parameters()} == {frozen if cast else torch.float32}
    saved = [value for tensors in one.state.saved().values() for value in tensors.values()]
    assert {value.dtype for value in saved} == {
        torch.float32
    }  # weights, averages, optimizers, scales
    assert one.state.exported("student").network.last.weight.dtype == torch.float32


@pytest.mark.parametrize("precision", MODES)
def test_two_scores_that_begin_alike_have_no_difference(precision):
    """Of distribution matching, whose `fake` begins as the teacher: no gradient of rounding."""
    one = real(DMD2(gan=0.0, gan_fake=0.0), None, config(steps=1, precision=precision))
    handed_in = one.state.modules["teacher"]
    clock = one.clock(0)
    draws = Draws(0, range(8), stream="loss")
    losses = one.method.loss(one.nets, one.data(0, range(8), draws), clock)
    assert torch.equal(losses.terms["matching"], torch.zeros(8))
    assert handed_in.autocast == MODES[precision][0]


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
        chosen = config(steps=3, compile=compiled, optimizer=Sgd(lr=1e-2))
        if name == "guided_distillation":  # needs a teacher that is guided
            teacher = Saved("digits_teacher")
            run = Run(Digits(limit=32), COMPILED[name], teacher, dropout=0.0, trainer=chosen)
            one = run.prepared(folder=at).trainer
        else:
            one = real(COMPILED[name], at, chosen)
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
