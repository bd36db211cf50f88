"""`distil` from Python: what it returns, and what it refuses before it begins."""

from pathlib import Path

import pytest
import torch

from fewstep import Run, distil, load
from fewstep.contracts.trial import teacher
from fewstep.data.digits import Digits
from fewstep.diffusion.process import VarianceExploding
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.methods.diffusion import Diffusion
from fewstep.metrics.classifier import Classification
from fewstep.models.classifier import Classifier, ClassifierNetwork, FreshClassifier
from fewstep.models.source import Fresh
from fewstep.training.config import TrainerConfig
from fewstep.training.log import read_log
from tests.test_contracts import TINY


def tiny_run(method=None, teacher=None, **changes):
    options = {"steps": 3, "batch": 8, "device": "cpu", "health_every": 2, "ema": (0.5,)}
    config = TrainerConfig(**{**options, **changes})
    data, teacher = Digits(limit=64), teacher or Fresh(network=TINY)
    return Run(data, method or Diffusion(), teacher, trainer=config)


def test_it_returns_what_it_made(tmp_path):
    made = distil(tiny_run(), tmp_path / "run")
    assert not made.already
    assert list(made.models) == ["student"]
    assert made.folder == tmp_path / "run"
    assert made.numbers == read_log(tmp_path / "run" / "log.jsonl")[-1]
    assert made.numbers["step"] == 3
    assert made.health.startswith("The held-out loss")
    loaded = load(tmp_path / "run")
    assert torch.equal(made.student.generate(num=4, steps=2), loaded.generate(num=4, steps=2))
    assert made.student.card == loaded.card


def test_in_other_arithmetic_too_the_model_is_the_saved_one(tmp_path):
    made = distil(tiny_run(precision="bf16"), tmp_path / "run").student
    loaded = load(tmp_path / "run")
    assert torch.equal(made.generate(num=4, steps=2), loaded.generate(num=4, steps=2))


def test_a_finished_run_is_read(tmp_path):
    made = distil(tiny_run(), tmp_path / "run")
    seen = []
    again = distil(tiny_run(), tmp_path / "run", observers=[seen.append])
    assert again.already
    assert seen == []
    assert again.numbers == made.numbers
    assert torch.equal(
        again.student.generate(num=2, steps=2), made.student.generate(num=2, steps=2)
    )


def test_a_finished_classifier_is_read(tmp_path):
    teacher = FreshClassifier(ClassifierNetwork(channels=4, features=8))
    run = tiny_run(Classification(), teacher)
    images = torch.rand(3, 1, 8, 8)
    made = distil(run, tmp_path / "run").student
    again = distil(run, tmp_path / "run")
    assert again.already
    assert isinstance(again.student, Classifier)
    assert torch.equal(again.student.measure(images)[0], made.measure(images)[0])


def test_observers_look_at_every_step(tmp_path):
    seen = []
    distil(tiny_run(), tmp_path / "run", observers=[lambda one: seen.append(one.done)])
    assert seen == [1, 2, 3]


def test_it_is_quiet_where_nobody_looks(tmp_path, capsys):
    distil(tiny_run(), tmp_path / "run")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (lambda: tiny_run(ConsistencyDistillation(bins=-3)), ["method.bins: ", "(got -3)"]),
        (lambda: tiny_run(batch="many"), ["trainer.batch: ", "(got 'many')"]),
        (lambda: tiny_run(steps=0), ["trainer.steps: ", "(got 0)"]),
        (lambda: tiny_run(teacher=Fresh(network=7)), ["teacher.network: ", "(got 7)"]),
    ],
    ids=["a method", "a word", "no step", "no network"],
)
def test_a_wrong_value_is_refused_when_the_run_begins(tmp_path, run, says):
    """With the line that the command line prints, before a folder is made."""
    with pytest.raises(ValueError) as error:  # noqa: PT011
        distil(run(), tmp_path / "run")
    lines = str(error.value).splitlines()
    assert len(lines) == 1
    for word in says:
        assert word in lines[0]
    assert not Path(tmp_path / "run").exists()


def test_all_wrong_values_are_named():
    with pytest.raises(ValueError) as error:  # noqa: PT011
        distil(tiny_run(ConsistencyDistillation(bins=-3), batch="many"), "never")
    assert len(str(error.value).splitlines()) == 2


def test_a_run_is_put_together_from_what_is_given():
    digits = Digits(limit=32).dataset()
    model = teacher(VarianceExploding())
    run = tiny_run(ConsistencyDistillation(bins=4))
    found = run.prepared(digits, model=model)
    assert found.model is model
    assert found.stream.dataset is digits
    assert found.nets.teacher is model.denoiser
    assert found.trainer.nets is found.nets
    assert found.held_out is None
    assert found.trainer.folder is None


def test_a_run_that_reads_its_data_holds_images_out():
    found = tiny_run().prepared()
    test = Digits(limit=64).dataset("test")
    assert len(found.held_out) == len(test) > 0
    assert tiny_run(health_every=0).prepared().held_out is None
