"""The folder of a run: whose it is, whether it is finished, and that one process writes."""

import json

import pytest

from fewstep.errors import RefusedError
from fewstep.training.processes import World
from fewstep.training.run_folder import RunFolder
from fewstep.yaml import read_yaml

RUN = {"trainer": {"steps": 3, "keep": 2}, "data": {"kind": "digits", "workers": 1}}
MAY_CHANGE = {"trainer": ("keep",), "data": ("workers",)}


def begun(path, state=None):
    folder = RunFolder(path)
    folder.begin(RUN, ("student",), restart=False)
    if state:
        folder.write_status(state, 3, 3)
    return folder


@pytest.mark.parametrize("state", [None, "running", "stopped", "trained", "diverged"])
def test_a_run_is_finished_when_its_status_says_so(tmp_path, state):
    assert not RunFolder(tmp_path / "new").finished(RUN, MAY_CHANGE)
    assert not begun(tmp_path, state).finished(RUN, MAY_CHANGE)
    assert begun(tmp_path, "finished").finished(RUN, MAY_CHANGE)


def test_some_options_may_differ_and_others_not(tmp_path):
    folder = begun(tmp_path, "finished")
    assert folder.finished({**RUN, "trainer": {"steps": 3, "keep": 9}}, MAY_CHANGE)
    with pytest.raises(RefusedError, match=r"trainer\.steps: 3 -> 4"):
        folder.finished({**RUN, "trainer": {"steps": 4, "keep": 2}}, MAY_CHANGE)


def test_who_made_the_plugins_is_no_difference(tmp_path):
    folder = RunFolder(tmp_path)
    folder.begin({**RUN, "plugins": {"mine": "my_lab 0.1"}}, ("student",), restart=False)
    assert not folder.finished(RUN, MAY_CHANGE)


def test_a_damaged_status_is_not_finished(tmp_path):
    folder = begun(tmp_path, "finished")
    (tmp_path / "status.json").write_text("{")
    assert not folder.finished(RUN, MAY_CHANGE)


def test_a_restart_removes_what_was_made(tmp_path):
    folder = begun(tmp_path, "finished")
    for name in ("samples", "student", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "log.jsonl").write_text("{}\n")
    (tmp_path / "checkpoints" / "step-00000003").mkdir(parents=True)
    folder.begin({**RUN, "trainer": {"steps": 5}}, ("student",), restart=True)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"run.yaml", "checkpoints", "other"}
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert read_yaml(tmp_path / "run.yaml")["trainer"] == {"steps": 5}


def test_another_process_writes_nothing(tmp_path):
    folder = RunFolder(tmp_path, World(rank=1, size=2))
    folder.begin(RUN, ("student",), restart=True)
    folder.write_status("running", 1, 3)
    folder.write_diverged({})
    folder.clean()
    assert list(tmp_path.iterdir()) == []


def test_the_status_is_written_whole(tmp_path):
    RunFolder(tmp_path).write_status("stopped", 2, 3, "signal 15")
    found = json.loads((tmp_path / "status.json").read_text())
    assert found == {"state": "stopped", "step": 2, "steps": 3, "reason": "signal 15"}


def test_a_folder_in_which_no_run_began_goes_away(tmp_path):
    with RunFolder(tmp_path / "never").locked():
        assert (tmp_path / "never" / ".lock").is_file()
    assert not (tmp_path / "never").exists()
    with RunFolder(tmp_path / "begun").locked():
        (tmp_path / "begun" / "run.yaml").write_text("")
    assert (tmp_path / "begun" / "run.yaml").is_file()
