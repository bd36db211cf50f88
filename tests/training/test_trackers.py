"""TensorBoard and Weights & Biases are options that say what they need."""

import importlib.machinery
import importlib.util
import sys
import types

import pytest
from tests.training.test_resume import tiny_run

from fewstep.run import distil
from fewstep.training.config import TrainerConfig
from fewstep.training.log import read_log
from fewstep.training.trackers import check_trackers


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_without_the_package_a_run_is_refused_before_it_begins(tmp_path, monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(ValueError, match=f"pip install {package}"):
        distil(tiny_run(**{package: True}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_number_of_the_log_is_there(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    check_trackers(TrainerConfig(tensorboard=True))
    distil(tiny_run(tensorboard=True, steps=3), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    lines = read_log(tmp_path / "run" / "log.jsonl")
    keys = set(lines[0]) - {"step"}
    assert set(events.Tags()["scalars"]) == {key.replace(".", "/") for key in keys}
    for key in keys:
        found = [(e.step, e.value) for e in events.Scalars(key.replace(".", "/"))]
        assert found == [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in lines]


@pytest.fixture
def told(monkeypatch):
    """What the package is told: its runs, each with how it began and its lines."""
    runs = []

    class Begun:
        def __init__(self, **how):
            self.how, self.lines, self.ended = how, [], False
            runs.append(self)

        def log(self, numbers, step):
            self.lines.append({"step": step, **numbers})

        def finish(self):
            self.ended = True

    package = types.ModuleType("wandb")
    package.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    package.init = Begun
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return runs


def test_a_run_that_goes_on_is_the_same_one_there(tmp_path, told):
    folder = tmp_path / "mine"
    run = tiny_run(wandb=True, steps=4, log_every=1, save_every=2)

    def cut(seen):
        if seen.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distil(run, folder, observers=[cut])
    distil(run, folder)
    first, second = told
    assert first.how["id"] == second.how["id"] == (folder / "wandb_id.txt").read_text()
    assert first.how["resume"] == "allow"
    assert (first.how["name"], first.how["project"]) == ("mine", "fewstep")
    assert first.how["config"]["trainer"]["steps"] == 4
    assert first.how["dir"] == str(folder)
    assert second.ended
    assert [line["step"] for line in second.lines] == [3, 4]
    assert second.lines == read_log(folder / "log.jsonl")[2:]
    distil(run, folder, restart=True)
    assert told[2].how["id"] != first.how["id"]
