"""The folder of a run: whose it is, whether it is finished, and that one process writes."""

import json

import pytest
from tests.training.test_log import written

from fewstep.errors import DivergedError, RefusedError
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
    with pytest.raises(RefusedError, match=r"trainer\.steps: 3 -> 2"):
        folder.finished({**RUN, "trainer": {"steps": 2, "keep": 2}}, MAY_CHANGE)


def test_more_steps_make_the_same_run_longer(tmp_path):
    """Which has not come to its end."""
    folder = begun(tmp_path, "finished")
    longer = {**RUN, "trainer": {"steps": 4, "keep": 2}}
    assert not folder.finished(longer, MAY_CHANGE)
    assert (folder.longer(longer), folder.longer(RUN)) == (4, 0)


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
    status = {"state": "stopped", "step": 2, "steps": 3, "reason": "signal 15"}
    assert found == {**status, "seconds": 0.0, "threads": None}


def test_the_seconds_of_all_lives_are_added(tmp_path, monkeypatch):
    """The threads are those that are known last."""
    clock = [100.0]
    monkeypatch.setattr("fewstep.training.run_folder.time.monotonic", lambda: clock[0])

    def lived(seconds, threads=None):
        folder = RunFolder(tmp_path)
        folder.threads = threads
        folder.write_status("running", 1, 3)
        clock[0] += seconds
        folder.write_status("stopped", 2, 3)
        clock[0] += 1000.0  # nobody works
        return folder.status()

    assert (lived(7.5, 4)["seconds"], lived(2.0)["seconds"]) == (7.5, 9.5)
    assert RunFolder(tmp_path).status()["threads"] == 4


def test_a_folder_in_which_no_run_began_goes_away(tmp_path):
    with RunFolder(tmp_path / "never").locked():
        assert (tmp_path / "never" / ".lock").is_file()
    assert not (tmp_path / "never").exists()
    with RunFolder(tmp_path / "begun").locked():
        (tmp_path / "begun" / "run.yaml").write_text("")
    assert (tmp_path / "begun" / "run.yaml").is_file()


class TestOnlyOwnThingsAreRemoved:
    def refused(self, path):
        def fail():
            (path / "index").mkdir()
            raise ValueError("the reason")

        with pytest.raises(ValueError, match="the reason"), RunFolder(path).locked():
            fail()

    def test_a_folder_of_the_user(self, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "run").symlink_to(tmp_path / "mine")
        self.refused(tmp_path / "run")
        assert (tmp_path / "run").is_symlink()
        assert (tmp_path / "mine").is_dir()
        assert not (tmp_path / "mine" / ".lock").exists()

    def test_what_was_made_for_it(self, tmp_path):
        self.refused(tmp_path / "run")
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_with_something_in_it(self, tmp_path):
        (tmp_path / ".tmp-notes").write_text("mine")
        self.refused(tmp_path)
        assert (tmp_path / ".tmp-notes").read_text() == "mine"

    @pytest.mark.parametrize("name", ["checkpoints", "samples", "tensorboard", "index"])
    def test_a_link_to_another_folder_is_not_followed(self, tmp_path, name):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / ".tmp-99-x").write_text("mine")
        folder = begun(tmp_path / "run")
        (folder.path / name).symlink_to(tmp_path / "mine")
        with pytest.raises(ValueError, match=f"run/{name} is a link"), folder.locked():
            pytest.fail("it was followed")
        assert (tmp_path / "mine" / ".tmp-99-x").read_text() == "mine"

    def test_a_restart_removes_links_and_not_what_they_name(self, tmp_path):
        (tmp_path / "mine").mkdir()
        folder = begun(tmp_path / "run", "finished")
        (folder.path / "student").symlink_to(tmp_path / "mine")
        folder.begin(RUN, ("student",), restart=True)
        assert not (folder.path / "student").is_symlink()
        assert (tmp_path / "mine").is_dir()


def test_what_killed_processes_left_goes_with_the_next_lock(tmp_path):
    folder = begun(tmp_path)
    for name in ("samples", "index"):
        (tmp_path / name).mkdir()
    left = [".tmp-999999-report.html", "samples/.tmp-999999-step.png", "index/.tmp-999999-files"]
    for name in left:
        (tmp_path / name).write_text("half")
    with folder.locked():
        assert not any((tmp_path / name).exists() for name in left)


PLACED = RUN | {
    "data": {"kind": "idx", "path": "a", "limit": 3, "invert": True},
    "teacher": {"kind": "saved", "path": "x", "ema": None},
    "start": None,
}
FREE = {"data": ("path", "kind"), "teacher": ("path",), "start": ("path",)}


class TestOtherPlaces:
    def held(self, tmp_path, **changed):
        folder = RunFolder(tmp_path)
        folder.begin(PLACED, ("student",), restart=False)
        folder.write_status("finished", 3, 3)
        asked = dict(PLACED)
        for part, options in changed.items():
            asked[part] = options and {**PLACED[part], **options}
        return folder.finished(asked, FREE), folder.moved(asked, FREE)

    def test_they_are_named(self, tmp_path):
        assert self.held(tmp_path) == (True, "")
        moved = self.held(tmp_path, data={"path": "b"}, teacher={"path": "y"})
        assert moved == (True, "data.path: a -> b, teacher.path: x -> y")

    def test_another_kind_of_data_agrees_in_what_both_know(self, tmp_path):
        asked = PLACED | {"data": {"kind": "folder", "path": "b", "limit": 3, "size": 8}}
        folder = RunFolder(tmp_path)
        folder.begin(PLACED, ("student",), restart=False)
        assert not folder.finished(asked, FREE)
        assert folder.moved(asked, FREE) == "data.path: a -> b, data.kind: idx -> folder"
        asked["data"]["limit"] = 4
        with pytest.raises(RefusedError, match=r"data\.limit: 3 -> 4"):
            folder.finished(asked, FREE)

    def test_other_options_stay_what_they_were(self, tmp_path):
        with pytest.raises(RefusedError, match=r"data\.invert: True -> False"):
            self.held(tmp_path, data={"path": "b", "invert": False})
        with pytest.raises(RefusedError, match=r"teacher\.kind: saved -> fresh"):
            self.held(tmp_path, teacher={"kind": "fresh"})


def test_an_older_run_file_is_read_as_this_version_writes_it(tmp_path):
    folder = RunFolder(tmp_path, renewed=lambda old: {"new": 7} | old)
    folder.begin(RUN, ("student",), restart=False)
    assert not folder.finished(RUN | {"new": 7}, MAY_CHANGE)
    with pytest.raises(RefusedError, match="new: 7 -> 8"):
        folder.finished(RUN | {"new": 8}, MAY_CHANGE)


ENDS = [
    (SystemExit(129), "stopped", "signal 1"),
    (KeyboardInterrupt(), "stopped", "signal 2"),
    (OSError(28, "No space left on device", "x"), "failed", "No space left on device: 'x'"),
    (MemoryError(), "failed", "MemoryError"),
    (ValueError("one\ntwo"), "failed", "one two"),
    (DivergedError("too many"), "diverged", "too many"),
    (RuntimeError("[gloo] Timed out"), "failed", "another process ended or was silent"),
]


@pytest.mark.parametrize(("error", "state", "reason"), ENDS, ids=lambda one: repr(one)[:30])
def test_every_end_is_written(tmp_path, error, state, reason):
    folder = begun(tmp_path, "running")
    written(tmp_path / "log.jsonl", range(1, 6))
    with pytest.raises(type(error)), folder.recorded(9):
        raise error
    found = json.loads((tmp_path / "status.json").read_text())
    assert (found["state"], found["step"], found["steps"]) == (state, 5, 9)
    assert reason in found["reason"]


def test_a_refusal_ends_nothing(tmp_path):
    folder = begun(tmp_path, "stopped")
    before = (tmp_path / "status.json").read_bytes()
    with pytest.raises(RefusedError), folder.recorded(9):
        raise RefusedError("no")
    assert (tmp_path / "status.json").read_bytes() == before


def test_where_not_even_the_end_can_be_written_the_error_is_what_it_was(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fewstep.training.run_folder.write_json", full)
    with pytest.raises(ValueError, match="the reason"), RunFolder(tmp_path).recorded(9):
        raise ValueError("the reason")
