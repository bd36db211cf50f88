"""Laws that every method, solver and recipe obeys. A new file in the folder falls under them
without being named.
"""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep import methods, recipes
from fewstep.choice import replaced
from fewstep.data.digits import Digits
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.draws import Draws
from fewstep.diffusion.process import Process, VarianceExploding
from fewstep.learning.method import Clock, Method
from fewstep.learning.slow_target import SlowTarget
from fewstep.models.source import Fresh
from fewstep.models.unet import UNet
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import Sgd
from fewstep.training.precision import MODES
from fewstep.yaml import from_yaml, to_yaml
from tests.data.wnids import write_wnids

METHODS = {
    name: cls
    for name, cls in Method.kinds().items()
    if cls.__module__.startswith("fewstep.methods.")
}
OTHERS = {kind: cls() for kind, cls in Process.kinds().items() if cls is not VarianceExploding}
RECIPES = sorted(recipes.listed())
TINY = UNet(channels=8, multipliers=(1, 1), blocks=1, attention=(2,), head_channels=8, groups=4)
ROWS = 16


@pytest.fixture(scope="module")
def digits():
    return Digits(limit=64).dataset()


def teacher_of(digits, process=None):
    """A tiny teacher with weights everywhere: a fresh one is zero in its last layers and would hide
    mistakes.
    """
    process = process or VarianceExploding()
    model = Fresh(network=TINY, process=process).load(digits.space, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.denoiser.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    assert sum(p.numel() for p in model.denoiser.parameters()) < 50_000
    return model


def trainer_of(cls, digits, process=None, **config):
    """A trainer of the method's defaults on the tiny teacher."""
    model = teacher_of(digits, process)
    config = {"steps": 3, "batch": ROWS, "optimizer": Sgd(lr=0.05), "ema": (0.5,)} | config
    run = Run(Digits(), cls(), trainer=TrainerConfig(**config))
    return model, run.prepared(digits, model=model).trainer


def made_by(model, trainer):
    """(sampler, model) of each network that the trained method exports."""
    for name in trainer.state.roles.exports:
        sampler = trainer.method.sampler(trainer.clock(2), name)
        yield (
            sampler,
            model.trained(
                trainer.state.exported(name), sampler, trainer.method.student_guidance(), {}, {}
            ),
        )


def weights(trainer):
    return {
        f"{n}/{k}": v.clone()
        for n, m in trainer.state.modules.items()
        for k, v in m.state_dict().items()
    }


def test_the_folder_is_the_list():
    files = Path(methods.__file__).parent.glob("[!_]*.py")
    assert sorted(METHODS) == sorted(file.stem for file in files)
    assert sorted(METHODS) == sorted(Method.offered())


SLOW = {name: cls for name, cls in METHODS.items() if issubclass(cls, SlowTarget)}


@pytest.mark.parametrize("cls", SLOW.values(), ids=SLOW)
def test_a_slow_target_keeps_its_decay_and_takes_the_rest_from_the_student(cls):
    """And nothing else moves."""
    method = cls(target_decay=0.9)
    nets = method.Nets(
        *(torch.nn.Linear(3, 2, dtype=torch.float64) for _ in dataclasses.fields(method.Nets))
    )
    before = {
        name: [p.detach().clone() for p in net.parameters()] for name, net in vars(nets).items()
    }
    method.after_step(nets, Clock(1, 3, ROWS))
    for now, slow, fast in zip(nets.target.parameters(), before["target"], before["student"]):
        torch.testing.assert_close(now.detach(), 0.9 * slow + 0.1 * fast, rtol=1e-12, atol=0)
    for name in vars(nets).keys() - {"target"}:
        assert all(
            torch.equal(a, b) for a, b in zip(getattr(nets, name).parameters(), before[name])
        )


@pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS)
class TestMethod:
    def test_a_round_trip_through_a_file_keeps_it(self, cls, digits):
        method = cls()
        assert Method.parse(from_yaml(to_yaml(method.dump()), "test")) == method

    def test_names_a_paper(self, cls, digits):
        import sys

        assert "arXiv:" in (sys.modules[cls.__module__].__doc__ + cls.__doc__)

    def test_only_the_declared_networks_change(self, cls, digits):
        model, trainer = trainer_of(cls, digits)
        handed_in = copy.deepcopy(model.denoiser.state_dict())
        before = weights(trainer)
        trainer.fit()
        for key, value in weights(trainer).items():
            net = key.split("/")[0]
            if net not in (*trainer.state.roles.trains, *trainer.state.roles.moves):
                assert torch.equal(value, before[key]), (
                    f"{key} changed and is neither trained nor moved"
                )
        for net in (*trainer.state.roles.trains, *trainer.state.roles.moves):
            changed = [
                k
                for k, v in weights(trainer).items()
                if k.startswith(net) and not torch.equal(v, before[k])
            ]
            assert changed, f"{net} did not change at all"
        assert all(torch.equal(handed_in[k], v) for k, v in model.denoiser.state_dict().items())

    def test_frozen_networks_get_no_gradient(self, cls, digits):
        _, trainer = trainer_of(cls, digits)
        clock = Clock(1, 3, ROWS)
        update = trainer.method.updates(clock)[0]
        losses = update.loss(
            trainer.nets, trainer.data(0, range(ROWS), Draws(0, range(ROWS))), clock
        )
        sum(term.sum() for term in losses.terms.values()).backward()
        for name, module in trainer.state.modules.items():
            has = any(p.grad is not None for p in module.parameters())
            assert has == (name in update.trains), name

    def test_losses_are_per_sample_finite_and_repeat(self, cls, digits):
        _, trainer = trainer_of(cls, digits)
        for step in (0, 1, 2):
            clock = Clock(step, 3, ROWS)
            for update in trainer.method.updates(clock):
                found = [
                    update.loss(
                        trainer.nets,
                        trainer.data(0, range(ROWS), Draws(7, range(ROWS), step=step)),
                        clock,
                    )
                    for _ in range(2)
                ]
                for key, value in found[0].terms.items():
                    assert value.shape == (ROWS,)
                    assert torch.isfinite(value).all()
                    assert torch.equal(value, found[1].terms[key])

    def test_accumulation_gives_the_whole_batch(self, cls, digits):
        """1×16 rows equal 4×4 rows: draws belong to rows, and the mean is over the global batch."""
        runs = []
        for micro in (0, 4):
            _, trainer = trainer_of(cls, digits, micro_batch=micro)
            trainer.fit()
            runs.append(weights(trainer))
        for key, value in runs[0].items():
            assert torch.allclose(value, runs[1][key], atol=2e-6, rtol=1e-5), key

    @pytest.mark.parametrize("precision", ["bf16", "fp16", "fp16_teacher"])
    def test_other_arithmetic_follows_fp32(self, cls, digits, precision):
        losses = []
        for name in ("fp32", precision):
            _, trainer = trainer_of(cls, digits, precision=name)
            clock = trainer.clock(0)
            done = trainer.step(trainer.method.updates(clock)[0], clock, 0, 0)
            losses.append(float(next(iter(done.numbers.values()))))
        assert losses[1] == pytest.approx(losses[0], rel=0.05)
        frozen = None if precision == "fp32" else MODES[precision][1]
        for name, module in trainer.state.modules.items():
            kept = name in trainer.state.kept or not isinstance(module, Denoiser)
            assert {p.dtype for p in module.parameters()} == {torch.float32 if kept else frozen}

    def test_checkpointing_changes_nothing(self, cls, digits):
        runs = []
        for checkpointing in (False, True):
            _, trainer = trainer_of(cls, digits, checkpointing=checkpointing)
            trainer.fit()
            runs.append(weights(trainer))
        for key, value in runs[0].items():
            assert torch.allclose(value, runs[1][key], atol=1e-6, rtol=1e-5), key

    def test_the_student_samples_at_its_cost(self, cls, digits):
        """The exported network goes through the method's sampler with the evaluations that it
        announces.
        """
        model, trainer = trainer_of(cls, digits)
        trainer.fit()
        for sampler, made in made_by(model, trainer):
            calls = []
            made.denoiser.network.register_forward_pre_hook(lambda *_, seen=calls: seen.append(1))
            images = made.generate(num=4, steps=2)
            assert len(calls) == made.evaluations(sampler.with_steps(2))
            assert images.shape == (4, *digits.shape)
            assert 0 <= images.min() <= images.max() <= 1

    @pytest.mark.parametrize("process", OTHERS.values(), ids=OTHERS)
    def test_a_teacher_of_any_process_will_do(self, cls, digits, process):
        """Three steps from a default teacher, and finite samples: they begin at t_max, where alpha
        may be 0.
        """
        model, trainer = trainer_of(cls, digits, process)
        trainer.fit()
        for _, made in made_by(model, trainer):
            assert torch.isfinite(made.generate(num=4, steps=2)).all()

    def test_a_consistency_student_is_the_identity_at_t_min(self, cls, digits):
        """Where a method changes the parameterization it is to a boundary: f(x, t_min) = x bit by
        bit.
        """
        model, trainer = trainer_of(cls, digits)
        student = trainer.state.modules["student"]
        assert isinstance(student, Denoiser)
        if student.parameterization == model.denoiser.parameterization:
            return  # trained with the teacher's own prediction: a denoiser, without a boundary
        trainer.fit()
        x = torch.randn(4, *digits.shape)
        t = torch.full((4,), student.process.t_min, dtype=torch.float64)
        with torch.no_grad():
            assert torch.equal(
                student.eval()(x, t, model.conditioner({"label": torch.arange(4)})), x
            )

    def test_the_average_starts_anew_with_a_phase(self, cls, digits):
        phases = list(cls().phases(100))
        assert phases[0] == 0
        assert phases == sorted(set(phases))
        assert phases[-1] < 100


def write_cifar(folder, count=64):
    """A small made folder in the format of CIFAR-10's binary version."""
    generator = np.random.default_rng(0)
    records = generator.integers(0, 256, (count, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(count) % 10
    (folder / "data_batch_1.bin").write_bytes(records.tobytes())


def write_idx(folder, count=64, size=28):
    """A small made folder in MNIST's format."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, size, size), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    header = np.array([0x0803, count, size, size], dtype=">u4").tobytes()
    (folder / "train-images-idx3-ubyte").write_bytes(header + images.tobytes())
    (folder / "train-labels-idx1-ubyte").write_bytes(
        np.array([0x0801, count], dtype=">u4").tobytes() + labels.tobytes()
    )


@pytest.mark.parametrize("name", RECIPES)
class TestRecipe:
    def test_a_round_trip_through_a_file_keeps_it(self, name):
        run = recipes.recipe(name)
        again = Run.parse(from_yaml(to_yaml(run.dump()), "test"))
        assert again.dump() == run.dump()
        assert again == run

    def test_says_what_it_is(self, name):
        assert recipes.listed()[name].endswith(".")

    def test_its_classes_take_a_step_on_its_data(self, name, tmp_path):
        """Three updates on a few rows, with the recipe's own method, data and network (if it is not
        for a GPU).
        """
        self.steps(name, tmp_path, 3, 8, 5_000_000)

    @pytest.mark.slow
    def test_it_takes_three_steps_in_full_size(self, name, tmp_path):
        self.steps(name, tmp_path, 3, 2, 10**12)

    def steps(self, name, tmp_path, steps, batch, largest):
        run = recipes.recipe(name)
        if "path" in {f.name for f in dataclasses.fields(run.data)}:
            {"Cifar": write_cifar, "Imagenet9": write_wnids}.get(
                type(run.data).__name__, write_idx
            )(tmp_path)
            run = replaced(run, data=replaced(run.data, path=str(tmp_path)))
        dataset = run.data.dataset()
        while "path" in {
            f.name for f in dataclasses.fields(run.teacher)
        }:  # a teacher of another recipe
            teacher = Path(run.teacher.path).name
            run = replaced(run, teacher=recipes.recipe(teacher).teacher)
        with torch.device("meta"):
            size = sum(p.numel() for p in run.teacher.load(dataset.space, 0).denoiser.parameters())
        if size > largest:
            run = replaced(run, teacher=replaced(run.teacher, network=TINY))
        run = replaced(run, trainer=replaced(run.trainer, steps=steps, batch=batch))
        trainer = run.prepared(dataset).trainer
        before = weights(trainer)
        trainer.fit()
        assert any(not torch.equal(before[k], v) for k, v in weights(trainer).items())
        assert all(torch.isfinite(v).all() for v in weights(trainer).values())
