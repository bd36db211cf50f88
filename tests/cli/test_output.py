"""Output and terminal are no part of the work: whoever stops reading stops nothing."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import TEACHER, arrays, logged, weights
from tests.training.test_resume import tiny_run

from fewstep.cli.main import main
from fewstep.run import distil

WRITTEN = {
    "train": (*TEACHER, "name=new", "trainer.log_every=1"),
    "sample": ("sample", "runs/cd", "--out", "x.npz", "--num", "4"),
    "evaluate": ("evaluate", "runs/cd", "--num", "20", "--measures", "frechet", "--out", "x.json"),
    "check": ("data", "check", "digits"),
    "inspect": ("inspect", "methods"),
    "plan": ("plan", *TEACHER[1:]),
    "help": ("train", "--help"),
}


class Broken(io.StringIO):
    """Takes so many texts; from then on each is an error."""

    def __init__(self, taken, code):
        super().__init__()
        self.left, self.code = taken, code

    def write(self, text):
        self.left -= 1
        if self.left < 0:
            raise OSError(self.code, os.strerror(self.code))
        return super().write(text)


def ended(words):
    with pytest.raises(SystemExit) as error:
        main([str(word) for word in words])
    return error.value.code


@pytest.mark.parametrize("code", [errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EAGAIN])
@pytest.mark.parametrize("taken", [0, 3])
def test_a_run_goes_on_to_its_end(runs, monkeypatch, code, taken):
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, Broken(taken, code))
    assert ended(WRITTEN["train"]) == 0
    assert json.loads((runs / "new" / "status.json").read_text())["state"] == "finished"
    assert [line["step"] for line in logged(runs / "new")] == [1, 2, 3]
    assert (runs / "new" / "report.html").is_file()
    assert weights(runs / "new") == weights(runs / "tiny")


@pytest.mark.parametrize("verb", WRITTEN)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_every_verb(runs, monkeypatch, verb, stream):
    monkeypatch.setattr(sys, stream, Broken(0, errno.EPIPE))
    assert ended(WRITTEN[verb]) == 0
    if verb == "sample":
        assert len(arrays("x.npz")["arr_0"]) == 4
    if verb == "evaluate":
        assert json.loads(Path("x.json").read_text())


@pytest.mark.parametrize("verb", ["train", "check"])
@pytest.mark.parametrize("streams", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_none_at_all(runs, monkeypatch, verb, streams):
    for stream in streams:
        monkeypatch.setattr(sys, stream, None)
    assert ended(WRITTEN[verb]) == 0


def test_an_error_keeps_its_code(runs, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Broken(0, errno.EPIPE))
    assert ended(["sample", "nobody", "--out", "x.png"]) == 2


def test_a_bar_on_a_terminal_that_went_away(runs, monkeypatch):
    terminal = Broken(5, errno.EIO)
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    assert ended(WRITTEN["train"]) == 0
    assert terminal.left < 0
    assert weights(runs / "new") == weights(runs / "tiny")


def test_in_python_too(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Broken(0, errno.EPIPE))
    made = distil(tiny_run(log_every=1), tmp_path / "run", progress=True)
    assert not made.already
    assert sys.stdout.left < 0


def test_head(runs):
    """The real thing: the pipe is closed behind the first line, and the program ends with 0."""
    words = " ".join([*TEACHER, "name=new", "trainer.log_every=1"])
    call = "from fewstep.cli.main import main; main()"
    command = f"'{sys.executable}' -c '{call}' {words} | head -1; exit ${{PIPESTATUS[0]}}"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("data: digits, 64 rows of image")
    assert json.loads((runs / "new" / "status.json").read_text())["state"] == "finished"
    assert (runs / "new" / "report.html").is_file()
