"""A run is made longer: it ends as one that was as long from the beginning; or it says why not."""

import json
import shutil

import pytest
import torch

from fewstep.choice import replaced
from fewstep.data.digits import Digits
from fewstep.errors import RefusedError
from fewstep.learning.schedules import Constant, Cosine
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.methods.consistency_training import ConsistencyTraining
from fewstep.models.folder import load
from fewstep.models.source import Fresh, Saved
from fewstep.models.unet import UNet
from fewstep.run import Run, distil
from fewstep.training.config import TrainerConfig
from fewstep.training.log import read_log
from fewstep.yaml import read_yaml

TINY = UNet(channels=8, multipliers=(1,), blocks=1, attention=(), head_channels=8, groups=4)


def run_of(steps, schedule=None, method=None):
    config = TrainerConfig(
        steps=steps,
        batch=8,
        health_every=0,
        log_every=1,
        ema=(0.9,),
        schedule=schedule or Constant(warmup=2),
        device="cpu",
    )
    teacher = Saved("digits_teacher")
    if method is not None:
        teacher = Fresh(network=TINY)
    return Run(Digits(limit=64), method or ConsistencyDistillation(bins=4), teacher, trainer=config)


def ended(folder):
    return load(folder).denoiser.network.state_dict()


def test_it_ends_as_one_that_was_so_long_from_the_beginning(tmp_path):
    distil(run_of(3), tmp_path / "long")
    before = ended(tmp_path / "long")
    measured = tmp_path / "long" / "results.json"
    measured.write_text("[]")
    assert distil(run_of(3), tmp_path / "long").already
    assert measured.is_file()
    made = distil(run_of(6), tmp_path / "long")
    distil(run_of(6), tmp_path / "straight")
    mine, straight = ended(tmp_path / "long"), ended(tmp_path / "straight")
    assert all(torch.equal(mine[name], straight[name]) for name in straight)
    assert any(not torch.equal(mine[name], before[name]) for name in before)
    assert not made.already
    assert not measured.exists()  # it was of other weights
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("long", "straight")]
    losses = [[(line["step"], line["consistency"]) for line in log] for log in logs]
    assert losses[0] == losses[1]
    assert read_yaml(tmp_path / "long" / "run.yaml")["trainer"]["steps"] == 6
    status = json.loads((tmp_path / "long" / "status.json").read_text())
    assert (status["state"], status["step"], status["steps"]) == ("finished", 6, 6)
    assert distil(run_of(6), tmp_path / "long").already


def test_one_that_was_cut_while_it_became_longer_goes_on(tmp_path):
    """Its status still speaks of the shorter run."""
    distil(run_of(3), tmp_path / "x")
    status = (tmp_path / "x" / "status.json").read_text()

    def cut(seen):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distil(run_of(5), tmp_path / "x", observers=[cut])
    (tmp_path / "x" / "status.json").write_text(status)  # as if it had been cut before all else
    assert not distil(run_of(5), tmp_path / "x").already
    assert read_log(tmp_path / "x" / "log.jsonl")[-1]["step"] == 5


CURRICULUM = "the curriculum of consistency_training is spread over all of them"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schedule": Cosine()}, r"its learning rate \(cosine\) is spread over all of them"),
        ({"method": ConsistencyTraining(curriculum="doubling")}, CURRICULUM),
    ],
)
def test_what_is_spread_over_the_run_refuses(tmp_path, change, says):
    distil(run_of(3, **change), tmp_path / "x")
    kept = {p: p.read_bytes() for p in (tmp_path / "x").rglob("*.*") if p.is_file()}
    told = rf"a run of 3 steps cannot be made longer: {says}; start=\S*x with another name="
    with pytest.raises(RefusedError, match=told):
        distil(run_of(6, **change), tmp_path / "x")
    assert kept == {p: p.read_bytes() for p in (tmp_path / "x").rglob("*.*") if p.is_file()}


def test_a_shorter_one_and_another_are_other_runs(tmp_path):
    distil(run_of(4), tmp_path / "x")
    for other in (run_of(3), replaced(run_of(6), method=ConsistencyDistillation(bins=5))):
        with pytest.raises(RefusedError, match="holds a run with another configuration"):
            distil(other, tmp_path / "x")


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(tmp_path):
    distil(run_of(3), tmp_path / "x")
    before = ended(tmp_path / "x")
    shutil.rmtree(tmp_path / "x" / "checkpoints")
    with pytest.raises(RefusedError, match="a run of fewer steps; no checkpoint is left"):
        distil(run_of(6), tmp_path / "x")
    assert all(torch.equal(one, before[name]) for name, one in ended(tmp_path / "x").items())
