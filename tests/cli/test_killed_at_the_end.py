"""Killed at any moment behind its last step a run is finished by the same command: nothing is
missing, nothing is left over.
"""

import os
from pathlib import Path

import pytest
import torch
from tests.cli.conftest import TEACHER
from tests.untimed import untimed

from fewstep.cli.main import main

WORDS = (*TEACHER, "trainer.sample_every=3", "trainer.sample_steps=[1]", "trainer.save_every=2")


def content(folder):
    """All files but the lock, which names the process."""
    return {
        str(path.relative_to(folder)): untimed(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def child(name, moment):
    """Trains in another process, which is gone at its renaming of that number; what it renamed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            torch.set_num_threads(1)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            count = 0
            for kind in ("rename", "replace"):
                real = getattr(Path, kind)

                def counted(self, target, real=real):
                    nonlocal count
                    if count == moment:
                        os._exit(9)
                    count += 1
                    os.write(writer, f"{Path(target).name}\n".encode())
                    return real(self, target)

                setattr(Path, kind, counted)
            main([*WORDS, f"name={name}"])
        except SystemExit as ended:
            os._exit(ended.code or 0)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        renamed = pipe.read().split()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), renamed


def test_a_kill_at_any_moment_of_the_end(done, runs):
    code, renamed = child("whole", -1)
    assert code == 0
    last = len(renamed) - renamed[::-1].index("step-00000003")
    end = renamed[last - 1 :]
    assert {"step-00000003-1.png", "student", "status.json", "report.html"} <= set(end)
    # The name is in the report: all have the same.
    whole = content((runs / "whole").rename(runs / "kept"))
    for moment in range(last - 1, len(renamed)):
        code, before = child("whole", moment)
        assert (code, before) == (9, renamed[:moment])
        done(*WORDS, "name=whole")
        assert content(runs / "whole") == whole, f"killed before {renamed[moment]} ({moment})"
        (runs / "whole").rename(runs / f"killed {moment}")


def test_what_is_missing_of_a_finished_run_is_made(done, runs):
    before = None  # the first report has curves, which are not drawn here
    for name in ("report.html", "report.html", "student/model.json"):
        (runs / "tiny" / name).unlink()
        assert "finished: " in done(*TEACHER, "name=tiny")
        assert before in (None, content(runs / "tiny")), name
        before = content(runs / "tiny")
    assert "finished already" in done(*TEACHER, "name=tiny")


@pytest.mark.parametrize("out", ["x.npz", "x.png", "x"])
def test_samples_leave_nothing_over(done, runs, tmp_path, out):
    pid = os.fork()
    if pid == 0:
        try:
            Path.rename = Path.replace = lambda *_: os._exit(9)
            main(["sample", "runs/cd", "--out", f"made/{out}", "--num", "2"])
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert len(os.listdir("made")) == 1
    done("sample", "runs/cd", "--out", "made/y.png", "--num", "2")
    assert os.listdir("made") == ["y.png"]
