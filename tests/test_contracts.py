"""Laws that every method, solver and recipe obeys. A new file in the folder falls under them
without being named.
"""

import dataclasses
import functools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep import methods, recipes
from fewstep.choice import replaced
from fewstep.cli.plan import with_new_parts
from fewstep.contracts.laws import LAWS
from fewstep.contracts.sampled import OTHERS, trains_from
from fewstep.contracts.trained import bf16_follows_fp32
from fewstep.contracts.trial import TINY, Trial, digits, students, teacher, weights
from fewstep.data.digits import Digits
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.process import RectifiedFlow, VarianceExploding
from fewstep.learning.method import Clock, Method
from fewstep.learning.slow_target import SlowTarget
from fewstep.methods.consistency_training import ConsistencyTraining
from fewstep.methods.dmd2 import DMD2
from fewstep.models import sd15
from fewstep.models.source import Fresh, Saved
from fewstep.models.unet2d_condition import UNet2dCondition
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.yaml import from_yaml, to_yaml
from tests.data.picture_files import encoded, made
from tests.data.wnids import write_wnids
from tests.tiny_diffusion import SD15, tiny_pipeline

METHODS = {
    name: cls
    for name, cls in Method.kinds().items()
    if cls.__module__.startswith("fewstep.methods.")
}
RECIPES = sorted(recipes.listed())
ROWS = 16


@functools.cache
def trial_of(cls):
    """One trial for all laws, whose plain run is trained once."""
    return Trial(cls)


@pytest.fixture
def trial(cls):
    return trial_of(cls)


def test_the_teacher_of_a_trial_is_tiny():
    model = teacher(VarianceExploding())
    assert sum(p.numel() for p in model.denoiser.parameters()) < 50_000


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


ASKS_WITHOUT_GRADIENT = {
    name: cls for name, cls in SLOW.items() if name not in {"consistency_trajectory"}
}
"""consistency_trajectory's gradient goes through its target to what it is asked about."""


@pytest.mark.parametrize("cls", ASKS_WITHOUT_GRADIENT.values(), ids=ASKS_WITHOUT_GRADIENT)
def test_a_target_that_is_the_student_is_no_copy_of_it(cls, monkeypatch):
    """And the student becomes the same, to the last bit, as with a copy that is renewed in each
    step.
    """
    ends = []
    for copies in (False, True):
        if copies:
            always = lambda method, clone, **wanted: clone("target", **wanted)  # noqa: E731
            monkeypatch.setattr(SlowTarget, "slow_copy", always)
        config = TrainerConfig(steps=4, batch=ROWS, device="cpu")
        run = Run(Digits(), cls(target_decay=0.0), trainer=config)
        trainer = run.prepared(digits(), model=teacher(VarianceExploding())).trainer
        begun = of_student(weights(trainer))
        for _ in trainer.steps():
            pass
        own_option = cls is ConsistencyTraining  # says by another one who gives the goal
        assert ("target" in trainer.state.modules) == (copies and not own_option)
        ends.append(of_student(weights(trainer)))
        assert any(not torch.equal(begun[name], ends[-1][name]) for name in begun)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def of_student(found):
    return {name: value for name, value in found.items() if name.startswith("student/")}


# Laws that are tried here one case at a time.
CASES = {"any_process_will_do", "bf16_follows_fp32"}


@pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS)
class TestMethod:
    @pytest.mark.parametrize("law", [law for law in LAWS if law not in CASES])
    def test_keeps_the_law(self, cls, trial, law):
        assert LAWS[law](trial) is None

    def test_names_a_paper(self, cls):
        assert "arXiv:" in (sys.modules[cls.__module__].__doc__ + cls.__doc__)

    @pytest.mark.parametrize("precision", ["bf16", "fp16", "fp16_teacher"])
    def test_other_arithmetic_follows_fp32(self, cls, trial, precision):
        assert bf16_follows_fp32(trial, precision) is None

    @pytest.mark.parametrize("process", OTHERS.values(), ids=OTHERS)
    def test_a_teacher_of_any_process_will_do(self, cls, trial, process):
        """None of the package's methods refuses one."""
        trial.prepared(process())
        assert trains_from(trial, process()) is None

    def test_what_is_saved_generates(self, cls, trial):
        """The laws of students would pass where there is none."""
        assert len(list(students(trial.finished))) == len(
            trial.finished.trainer.state.roles.exports
        )

    def test_a_consistency_student_is_the_identity_at_t_min(self, cls, trial):
        model, trainer, _ = trial.trained()
        assert_identity_at_t_min(model, trainer)

    @pytest.mark.parametrize("process", [VarianceExploding(0.1, 20.0), RectifiedFlow()])
    def test_so_is_one_whose_network_speaks_another_process(self, cls, process):
        model = teacher(VarianceExploding())
        model.denoiser = model.denoiser.under(process.within(model.denoiser.own))
        config = TrainerConfig(steps=3, batch=ROWS, device="cpu")
        assert_identity_at_t_min(
            model, Run(Digits(), cls(), trainer=config).prepared(digits(), model=model).trainer
        )


def assert_identity_at_t_min(model, trainer):
    """Where a method changes the parameterization it is to a boundary: f(x, t_min) = x bit by
    bit.
    """
    student = trainer.state.modules["student"]
    assert isinstance(student, Denoiser)
    if student.parameterization == model.denoiser.parameterization:
        return  # trained with the teacher's own prediction: a denoiser, without a boundary
    x = torch.randn(4, *digits().shape)
    t = torch.full((4,), student.process.t_min, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(student.eval()(x, t, model.conditioner({"label": torch.arange(4)})), x)


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


def write_captioned(folder, count=40):
    """A small made folder of pictures with captions, which may leave words unsaid."""
    rows = ["file_name,text,tone"]
    for i, image in enumerate(made(count, shape=(3, 8, 8))[0]):
        (folder / f"{i}.png").write_bytes(encoded(image))
        rows.append(f'{i}.png,"hand {i % 4}, light",light' if i % 2 else f"{i}.png,hand {i % 4},")
    (folder / "metadata.csv").write_text("\n".join(rows))


def write_pictures(folder):
    """The same with a caption beside each picture."""
    write_captioned(folder)
    (folder / "metadata.csv").unlink()
    for file in folder.glob("*.png"):
        file.with_suffix(".txt").write_text(f"hand {file.stem}")


WRITERS = {
    "Cifar": write_cifar,
    "Imagenet9": write_wnids,
    "Table": write_captioned,
    "Folder": write_pictures,
}


def in_miniature(run, folder):
    """A run of Stable Diffusion 1.5 on a pipeline's folder of its configuration, in small; of ten
    updates of a fake denoiser it makes one.
    """
    pipeline = tiny_pipeline(network=UNet2dCondition(SD15["UNET"]))
    pipeline.save_pretrained(folder)
    method = replaced(run.method, fake_steps=1) if isinstance(run.method, DMD2) else run.method
    return replaced(
        run,
        teacher=Saved(str(folder)),
        data=replaced(run.data, size=8),
        method=method,
        trainer=replaced(run.trainer, micro_batch=0),
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
            (tmp_path / "data").mkdir()
            WRITERS.get(type(run.data).__name__, write_idx)(tmp_path / "data")
            run = replaced(run, data=replaced(run.data, path=str(tmp_path / "data")))
        if isinstance(run.teacher, Saved) and run.teacher.path == sd15.NAME:
            run = in_miniature(run, tmp_path / "sd15")
        dataset = run.data.dataset()
        run = replaced(run, trainer=replaced(run.trainer, steps=steps, batch=batch))
        trainer = run.prepared(dataset, model=self.model(run, dataset, largest)).trainer
        before = weights(trainer)
        trainer.fit()
        assert any(not torch.equal(before[k], v) for k, v in weights(trainer).items())
        assert all(torch.isfinite(v).all() for v in weights(trainer).values())

    def model(self, run, dataset, largest):
        """The teacher; that of another recipe as it begins."""
        source = run.teacher
        while isinstance(source, Saved) and not Path(source.path).exists():
            source = recipes.recipe(Path(source.path).name).teacher
        if isinstance(source, Fresh):
            source = with_new_parts(source, dataset.space)
        if not isinstance(source, Saved):
            with torch.device("meta"):
                made = source.load(dataset.space, 0)
            if sum(p.numel() for p in made.denoiser.parameters()) > largest:
                source = replaced(source, network=TINY)
        return source.load_for(dataset, 0)
