"""Students with low-rank additions, through all that a run does to them."""

import copy
import functools
from dataclasses import dataclass

import pytest
import torch
from tests.low_rank import MODELS, rows_of
from tests.training.tiny import StopError, assert_same, bits, state, stop_at

from fewstep.data.digits import Digits
from fewstep.diffusion.draws import Draws
from fewstep.learning.guidance import GuidanceRange
from fewstep.learning.tangent import Forward, Point
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.methods.dmd2 import DMD2
from fewstep.methods.latent_consistency import LatentConsistency
from fewstep.methods.mean_flow import MeanFlow
from fewstep.methods.progressive import Progressive
from fewstep.methods.truncated_consistency import TruncatedConsistency
from fewstep.models import network as networks_of_ours
from fewstep.models.adapters import (
    Adaptation,
    FullCopy,
    borrowed,
    merged,
    own_parameters,
    tensors_of,
)
from fewstep.models.lora import Lora
from fewstep.run import Run
from fewstep.training.checkpoint import Checkpoints
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW, Sgd
from fewstep.training.precision import MODES

pytest.importorskip("peft")

EVERY = pytest.mark.parametrize("name", MODELS)
OPTIONS = Lora(rank=3)


@dataclass(frozen=True)
class Apart(Adaptation):
    """The same additions, each on a copy of the base that nobody else has."""

    def adapted(self, network, inputs):
        return OPTIONS.adapted(copy.deepcopy(network), inputs)


@functools.cache
def dataset_of(name):
    return rows_of(MODELS[name]())


def trainer(name="unet", method=None, adaptation=OPTIONS, model=None, folder=None, **changes):
    chosen = {
        "steps": 3,
        "batch": 8,
        "optimizer": AdamW(lr=1e-2),
        "ema": (0.9, 0.5),
        "device": "cpu",
        "save_every": 0,
        "health_every": 0,
        **changes,
    }
    method = method or ConsistencyDistillation(bins=4)
    run = Run(Digits(), method, adaptation=adaptation, trainer=TrainerConfig(**chosen))
    model = model or MODELS[name]()
    return run.prepared(dataset_of(name), model=model, folder=folder).trainer


def own_of(trained):
    """The tensors that a run changes, by network and name."""
    found = {}
    for name, module in trained.state.modules.items():
        for key, value in own_parameters(module).items():
            found[f"{name}/{key}"] = value.detach().clone()
    return found


def assert_close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=tolerance, msg=key)


class TestOnlyAdditions:
    @EVERY
    def test_train_and_are_kept(self, name, folder):
        model = MODELS[name]()
        base = tensors_of(model.denoiser.network)
        before = {key: bits(value.detach()) for key, value in base.items()}
        one = trainer(name, model=model, folder=folder, save_every=3)
        one.fit()
        student = one.nets.student.network
        own = own_parameters(one.nets.student)
        size = sum(p.numel() for p in own.values())
        layers = [
            model.denoiser.network.get_submodule(path)
            for path in OPTIONS.layers(model.denoiser.network)
        ]
        assert size == 3 * sum(layer.weight[0].numel() + len(layer.weight) for layer in layers)
        [group] = one.state.optimizers["student"].param_groups
        assert {id(p) for p in group["params"]} == {id(p) for p in own.values()}
        for average in one.state.averages["student"].values():
            assert average.keys() == own.keys()
        saved = Checkpoints(folder / "checkpoints").load(3).tensors
        assert {key for key in saved["nets"] if key.startswith("student/")} == {
            f"student/{key}" for key in own
        }
        moments = [value for key, value in saved["optim"].items() if key.endswith("exp_avg")]
        assert sum(value.numel() for value in moments) == size
        assert all("lora_" in key for key in (*saved["nets"], *saved["ema"]))
        assert any(p.any() for key, p in own.items() if "lora_B" in key)
        assert {key: bits(value.detach()) for key, value in base.items()} == before
        assert one.nets.teacher.network is model.denoiser.network
        assert {id(t) for t in student.shared()} == {id(t) for t in base.values()}

    def test_three_roles_hold_one_base(self):
        model = MODELS["unet"]()
        one = trainer(method=DMD2(fake_steps=1), model=model)
        storages = {}
        for tensor in one.state.modules.values():
            for part in tensors_of(tensor).values():
                storages[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
        base = sum(p.nbytes for p in model.denoiser.parameters())
        own = sum(value.nbytes for value in own_of(one).values())
        own -= base  # the teacher's, whose own they are
        assert sum(storages.values()) == base + own
        assert set(one.state.modules) == {"student", "fake", "head", "teacher"}


RANGE = GuidanceRange(1.0, 4.0)
METHODS = {
    "dmd2": ("unet", DMD2(fake_steps=1)),
    "dmd2, two steps, guided": ("outside", DMD2(fake_steps=1, steps=2, guidance=RANGE)),
    "truncated": ("outside", TruncatedConsistency()),
    "progressive": ("outside", Progressive(start=8, end=2)),
}


@pytest.mark.parametrize(("name", "method"), METHODS.values(), ids=METHODS)
def test_roles_on_one_base_learn_as_on_copies(name, method):
    """Losses and weights, whichever base the additions are on."""
    ends = []
    for adaptation in (OPTIONS, Apart()):
        one = trainer(name, method, adaptation, optimizer=Sgd(lr=0.05), steps=3)
        seen = [seen.losses for seen in one.steps()]
        ends.append((seen, {k: v for k, v in own_of(one).items() if "lora_" in k or "embed" in k}))
    (losses, weights), (apart_losses, apart_weights) = ends
    assert any(key.startswith("student/") for key in weights)
    assert_close(weights, apart_weights, 1e-6)
    for mine, theirs in zip(losses, apart_losses, strict=True):
        assert_close(mine, theirs, 1e-6)


class TestGradients:
    def gradients(self, name, **changes):
        method = LatentConsistency() if name == "unet" else None
        one = trainer(name, method, **changes)
        with torch.no_grad():
            for key, value in own_parameters(one.nets.student).items():
                value += 0.05 * torch.randn(
                    value.shape, generator=torch.Generator().manual_seed(len(key))
                )
        clock = one.clock(0)
        one.step.backward(one.method.updates(clock)[0], clock, 0, 0)
        assert all(p.grad is None for p in one.nets.teacher.parameters())
        return {key: p.grad for key, p in own_parameters(one.nets.student).items()}

    @EVERY
    def test_are_the_same_where_activations_are_computed_again(self, name):
        plain, again = self.gradients(name), self.gradients(name, checkpointing=True)
        assert all(grad is not None and grad.any() for grad in again.values())
        assert_close(again, plain, 1e-6)

    def test_are_lost_where_that_is_done_by_what_goes_in(self, monkeypatch):
        """What the test above is for: reentrant checkpointing sees no gradient in a frozen base."""
        plain = networks_of_ours.checkpoint

        def reentrant(*arguments, use_reentrant):
            return plain(*arguments, use_reentrant=True)

        monkeypatch.setattr(networks_of_ours, "checkpoint", reentrant)
        with pytest.warns(UserWarning, match="None of the inputs have requires_grad"):
            found = self.gradients("dit", checkpointing=True)
        assert {key for key, grad in found.items() if grad is None} == {
            key for key in found if "blocks" in key
        }

    @pytest.mark.parametrize("name", ["dit", "unet_2d_condition"])
    def test_of_micro_batches_are_those_of_the_batch(self, name):
        whole, parts = self.gradients(name), self.gradients(name, micro_batch=2)
        assert_close(parts, whole, 1e-6)


class TestRuns:
    @pytest.mark.parametrize("step", [1, 4])
    @pytest.mark.parametrize("method", [LatentConsistency(), Progressive(start=8, end=2)])
    def test_cut_they_end_with_the_same_bits(self, method, step, folder):
        """Through phases, and with an input that was added."""
        straight = trainer("outside", method, steps=6)
        straight.fit()
        with pytest.raises(StopError):
            trainer("outside", method, folder=folder, steps=6, save_every=step).fit(stop_at(step))
        again = trainer("outside", method, folder=folder, steps=6)
        again.fit()
        assert_same(state(again), state(straight))

    def test_a_phase_begins_with_new_averages_of_the_additions(self):
        method = Progressive(start=8, end=2)
        one = trainer("outside", method, steps=6, ema=(0.9,))
        first = one.phases[1]
        for seen in one.steps():
            if seen.done == first + 1:  # the first step of a phase is taken whole
                now = own_parameters(one.nets.student)
                for key, value in one.state.averages["student"][0.9].items():
                    assert torch.equal(value, now[key].detach())
                break
        assert seen.done == first + 1

    def test_the_average_is_a_second_set_of_additions(self):
        one = trainer("outside", steps=4, ema=(0.5,), ema_warmup=False)
        wanted = {k: p.detach().clone() for k, p in own_parameters(one.nets.student).items()}
        for _ in one.steps():
            for key, p in own_parameters(one.nets.student).items():
                wanted[key].lerp_(p.detach(), 0.5)
        made = one.state.exported("student")
        assert_close({k: p.detach() for k, p in own_parameters(made).items()}, wanted, 0)
        base = {id(tensor) for tensor in borrowed(one.nets.student)}
        assert {id(tensor) for tensor in borrowed(made)} == base

    @EVERY
    def test_inputs_that_were_added_are_trained_in_full(self, name):
        method = LatentConsistency()
        one = trainer(name, method, steps=2)
        before = own_of(one)
        one.fit()
        added = [key for key in before if key.startswith("student/") and "lora_" not in key]
        assert added
        after = own_of(one)
        assert any(not torch.equal(after[key], before[key]) for key in added)
        assert one.nets.student.network.addition().facts["inputs"] == ["guidance"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_derivatives_are_taken_in_full_precision(precision):
    """On a base of 16 bits as on the network that is saved, with inputs in 32 beside it."""
    one = trainer(method=MeanFlow(), precision=precision)
    student = one.nets.student.eval()
    kinds = {t.dtype for t in borrowed(student)}
    x, t = torch.randn(4, 1, 8, 8), torch.linspace(0.5, 5.0, 4, dtype=torch.float64)
    at, rate = Point(x, t, t / 2), Point(torch.ones_like(x), torch.ones_like(t), None)
    cond = one.data(0, range(4), Draws(0, range(4))).cond
    found = Forward()(student, at, rate, cond)
    assert {t.dtype for t in borrowed(student)} == kinds == {MODES[precision][0]}
    for mine, right in zip(found, Forward()(merged(student), at, rate, cond), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-5)


PRECISIONS = {
    # the base of additions, what student and teacher compute in
    "fp32": (torch.float32, None, None),
    "fp16_teacher": (torch.float32, None, torch.float16),
    "fp16": (torch.float16, torch.float16, torch.float16),
    "bf16": (torch.bfloat16, torch.bfloat16, torch.bfloat16),
}


@pytest.mark.parametrize("precision", PRECISIONS)
class TestPrecision:
    @pytest.mark.parametrize("name", ["unet_2d_condition", "outside"])
    def test_additions_are_in_fp32_everywhere(self, precision, name, folder):
        base, of_student, of_teacher = PRECISIONS[precision]
        one = trainer(name, precision=precision, folder=folder, save_every=3)
        student = one.nets.student
        lent = [tensor for tensor in borrowed(student) if tensor.is_floating_point()]
        assert {tensor.dtype for tensor in lent} == {base}
        assert (student.autocast, one.nets.teacher.autocast) == (of_student, of_teacher)
        shared = {id(tensor) for tensor in lent}
        teachers = [t for t in tensors_of(one.nets.teacher).values() if t.is_floating_point()]
        assert {id(tensor) for tensor in teachers} == shared
        one.fit()
        assert {p.dtype for p in own_parameters(student).values()} == {torch.float32}
        saved = Checkpoints(folder / "checkpoints").load(3).tensors
        for group in ("nets", "ema", "optim"):
            assert {tensor.dtype for tensor in saved[group].values()} == {torch.float32}
        assert any(p.any() for key, p in own_parameters(student).items() if "lora_B" in key)

    def test_full_copies_train_in_fp32_beside_a_teacher_of_their_own(self, precision):
        _, of_student, of_teacher = PRECISIONS[precision]
        one = trainer("outside", adaptation=FullCopy(), precision=precision)
        assert {p.dtype for p in one.nets.student.parameters()} == {torch.float32}
        teacher = {p.dtype for p in one.nets.teacher.parameters()}
        assert teacher == {of_teacher or torch.float32}
        assert one.nets.student.autocast == of_student

    def test_it_begins_as_the_teacher_to_the_bit(self, precision):
        one = trainer(method=DMD2(fake_steps=1), precision=precision)
        fake, teacher = one.nets.fake.eval(), one.nets.teacher.eval()
        batch = one.data(0, range(4), Draws(0, range(4)))
        x, t = torch.randn(4, 1, 8, 8), torch.full((4,), 3.0, dtype=torch.float64)
        assert torch.equal(fake(x, t, batch.cond), teacher(x, t, batch.cond))
