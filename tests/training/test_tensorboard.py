"""TensorBoard is an option that says what it needs."""

import importlib.util

import pytest
from tests.training.test_resume import tiny_run

from fewstep.run import distil
from fewstep.training.log import read_log
from fewstep.training.tensorboard import check_tensorboard


def test_without_the_package_a_run_is_refused_before_it_begins(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name)
    )
    with pytest.raises(ValueError, match="pip install tensorboard"):
        distil(tiny_run(tensorboard=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_number_of_the_log_is_there(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    check_tensorboard()
    distil(tiny_run(tensorboard=True, steps=3), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    lines = read_log(tmp_path / "run" / "log.jsonl")
    keys = set(lines[0]) - {"step"}
    assert set(events.Tags()["scalars"]) == {key.replace(".", "/") for key in keys}
    for key in keys:
        found = [(e.step, e.value) for e in events.Scalars(key.replace(".", "/"))]
        assert found == [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in lines]
