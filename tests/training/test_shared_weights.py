"""Networks that share a frozen base and own an addition, through all that a run does to them."""

import copy

import pytest
import torch
from tests.shared_weights import LowRanks, LowRankView
from tests.training.tiny import StopError, assert_same, bits, config, model, real, state, stop_at

from fewstep.contracts.trial import teacher as tiny_teacher
from fewstep.data.digits import Digits
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.process import VarianceExploding
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.methods.diffusion import Diffusion
from fewstep.methods.progressive import Progressive
from fewstep.models.adapters import borrowed, merged, own_parameters, own_state
from fewstep.models.folder import load
from fewstep.models.source import Saved
from fewstep.run import Run, distil
from fewstep.training.checkpoint import Checkpoints
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import Sgd
from fewstep.training.precision import MODES
from fewstep.training.state import State

METHODS = {
    "distillation": ConsistencyDistillation(bins=4, target_decay=0.9),
    "progressive": Progressive(start=8, end=2),
    "teacher": Diffusion(),
}
METHOD = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
PRECISIONS = ("fp32", "bf16", "fp16", "fp16_teacher")


def shared(method, of=None, folder=None, apart=False, **changes):
    """A trainer whose networks are views on the network of the model."""
    return real(method, folder, config(**changes), of=of, adaptation=LowRanks(apart=apart))


def trained_bits(tensors):
    return {key: bits(value.detach()) for key, value in tensors.items()}


@METHOD
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_base_is_stored_once_and_keeps_every_bit(method, precision):
    """Where the mode has a type for what trains, the base is a cast copy, one for all."""
    of = model()
    base = dict(of.denoiser.network.named_parameters())
    before = trained_bits(base)
    one = shared(method, of, precision=precision, steps=6)
    handed = {p.data_ptr() for p in base.values()}
    frozen = [t for t in borrowed(one.nets.student) if isinstance(t, torch.nn.Parameter)]
    places, cast = {p.data_ptr() for p in frozen}, MODES[precision][0]
    assert len(places) == len(handed)
    assert (places == handed) if cast is None else not (places & handed)
    assert {p.dtype for p in frozen} == {cast or torch.float32}
    lent_before = [bits(p.detach().view(torch.uint8)) for p in frozen]
    views = [m for m in one.state.modules.values() if isinstance(m.network, LowRankView)]
    assert len(views) >= 1
    for module in one.state.modules.values():
        found = {p.data_ptr() for p in module.parameters()}
        assert places <= found
        own = {p.data_ptr() for p in own_parameters(module).values()}
        if module in views:
            assert {p.dtype for p in own_parameters(module).values()} == {torch.float32}
            assert found == places | own
            assert not places & own
    one.fit()
    assert trained_bits(base) == before
    assert {p.data_ptr() for p in base.values()} == handed
    assert [bits(p.detach().view(torch.uint8)) for p in frozen] == lent_before
    moved = own_parameters(one.nets.student)
    assert any(p.any() for key, p in moved.items() if key.endswith("up"))


@METHOD
def test_it_learns_as_separate_copies_of_the_base_do(method):
    """The same additions on a frozen copy for each network: bit by bit."""
    ends = []
    for apart in (False, True):
        one = shared(method, apart=apart)
        one.fit()
        ends.append(state(one))
    assert_same(*ends)


def test_at_first_a_view_is_the_network_it_is_on():
    of = model()
    one = shared(ConsistencyDistillation(bins=4), of)
    x, t = torch.randn(4, 1, 2, 2), torch.full((4,), 3.0, dtype=torch.float64)
    cond = one.data(0, range(4), Draws(0, range(4))).cond
    student = one.nets.student.eval()
    plain = Denoiser(of.denoiser.network, student.process, student.parameterization)
    assert torch.equal(student(x, t, cond), plain(x, t, cond))


@METHOD
@pytest.mark.parametrize("step", [1, 5, 8])
def test_a_cut_run_ends_with_the_same_bits(method, folder, step):
    straight = shared(method)
    straight.fit()
    with pytest.raises(StopError):
        shared(method, folder=folder, save_every=step).fit(stop_at(step))
    again = shared(method, folder=folder)
    again.fit()
    assert_same(state(again), state(straight))


@METHOD
def test_a_checkpoint_holds_the_additions_alone(method, folder):
    one = shared(method, folder=folder, steps=4)
    one.fit()
    saved = Checkpoints(folder / "checkpoints").load(4).tensors
    for group in ("nets", "ema"):
        assert {key.rpartition(".")[2] for key in saved[group]} == {"down", "up"}
    own = own_parameters(one.nets.student)
    assert 0 < len(own) < len(list(one.nets.student.parameters()))
    for key, value in own.items():
        assert torch.equal(saved["nets"][f"student/{key}"], value)
    assert len([key for key in saved["optim"] if key.endswith("exp_avg")]) == len(own)


def test_a_base_that_was_loaded_anew_is_not_taken_from_the_checkpoint(folder):
    """The teacher's weights are the run's own to bring: only the additions come back."""
    method = ConsistencyDistillation(bins=4)
    with pytest.raises(StopError):
        shared(method, folder=folder, save_every=3).fit(stop_at(3))
    of = model()
    one = shared(method, of, folder=folder)
    one.fit()
    for mine, theirs in zip(of.denoiser.parameters(), model().denoiser.parameters()):
        assert torch.equal(mine, theirs)


def test_the_exported_copy_goes_on_sharing():
    one = shared(ConsistencyDistillation(bins=4), ema=(0.9, 0.5))
    one.fit()
    base = {t.data_ptr() for t in borrowed(one.nets.student)}
    for decay in (0.9, 0.5):
        made = one.state.exported("student", decay)
        assert {t.data_ptr() for t in borrowed(made)} == base
        for key, value in own_parameters(made).items():
            assert torch.equal(value, one.state.averages["student"][decay][key])
            assert value.data_ptr() not in base
        assert not any(p.requires_grad for p in made.parameters())
    before = state(one)
    with torch.no_grad():
        for value in own_parameters(made).values():
            value.zero_()
    assert_same(state(one), before)


def test_gradients_reach_the_additions_alone():
    one = shared(ConsistencyDistillation(bins=4))
    found = {}
    one.step.state.forget_gradients = lambda names: found.update(
        {k: p.grad for k, p in one.nets.student.named_parameters()}
    )
    clock = one.clock(0)
    one.step(one.method.updates(clock)[0], clock, 0, 0)
    own = own_parameters(one.nets.student)
    assert {key for key, grad in found.items() if grad is not None} == set(own)
    assert set(own) < set(found)


def test_a_view_that_is_merged_computes_the_same():
    one = shared(ConsistencyDistillation(bins=4), optimizer=Sgd(lr=0.3))
    one.fit()
    made = one.state.exported("student")
    plain = merged(made)
    assert not borrowed(plain)
    assert own_state(plain).keys() == plain.state_dict().keys()
    x, t = torch.randn(4, 1, 2, 2), torch.full((4,), 3.0, dtype=torch.float64)
    cond = one.data(0, range(4), Draws(0, range(4))).cond
    torch.testing.assert_close(plain(x, t, cond), made(x, t, cond), rtol=1e-5, atol=1e-6)
    base = Denoiser(model().denoiser.network, made.process, made.parameterization)
    assert not torch.allclose(plain(x, t, cond), base(x, t, cond), rtol=1e-3)
    assert merged(plain) is plain


def test_a_students_folder_holds_a_plain_network(folder):
    """Loaded without the teacher, with its averages, it answers as what `distil` returned."""
    digits = Digits(limit=64)
    teacher = tiny_teacher(VarianceExploding())
    teacher.save(folder / "teacher")
    run = Run(
        digits,
        ConsistencyDistillation(bins=4),
        Saved(str(folder / "teacher")),
        adaptation=LowRanks(),
        trainer=TrainerConfig(
            steps=3,
            batch=8,
            optimizer=Sgd(lr=0.1),
            ema=(0.5, 0.0),
            health_every=2,
            sample_every=3,
            sample_steps=(1,),
            device="cpu",
        ),
    )
    made = distil(run, folder / "run", say=lambda line: None).student
    loaded = load(folder / "run")
    keys = loaded.denoiser.network.state_dict().keys()
    assert keys == teacher.denoiser.network.state_dict().keys()
    assert torch.equal(loaded.generate(num=4, steps=1), made.generate(num=4, steps=1))
    other = load(folder / "run", "0")
    assert not torch.equal(loaded.generate(num=4, steps=1), other.generate(num=4, steps=1))
    assert distil(run, folder / "run").already


def test_networks_that_share_are_not_sharded(monkeypatch):
    """FSDP2 would split each network's own view of the base."""
    one = shared(ConsistencyDistillation(bins=4))

    class Two:
        size, rank = 2, 0

    with pytest.raises(ValueError, match="sharding=full does not go with"):
        State(one.method, copy.copy(one.nets), config(sharding="full"), one.device, Two())
