"""Progress: a bar where somebody can see one, lines where they are asked for, else nothing."""

import re
import sys
import types

import pytest

from fewstep.learning.method import Clock
from fewstep.training.progress import training_progress
from fewstep.training.seen import Seen


def shown(capsys, monkeypatch, progress, terminal=False):
    """What is printed of two steps, the second of which the log has read."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with training_progress(2, "run", progress) as show:
        for step in range(2):
            seen = Seen(Clock(step, 2, 8), {}, 0, dict)
            if step:
                seen.lines = [{"step": 2, "loss": 0.25, "rate": 1.0, "norm.student": 3.0}]
            show(seen)
    found = capsys.readouterr()
    return found.out, found.err


def test_lines_where_they_are_asked_for(capsys, monkeypatch):
    out, err = shown(capsys, monkeypatch, True)
    assert re.fullmatch(r"run: step 2 of 2, \d+ s, loss 0\.25\n", out)
    assert err == ""


@pytest.mark.parametrize("progress", [None, False])
def test_nothing_where_nobody_looks(capsys, monkeypatch, progress):
    assert shown(capsys, monkeypatch, progress) == ("", "")


@pytest.mark.parametrize("progress", [None, True])
def test_a_bar_on_a_terminal(capsys, monkeypatch, progress):
    out, err = shown(capsys, monkeypatch, progress, terminal=True)
    assert out == ""
    assert "2/2" in err
    assert "loss 0.25" in err


def test_no_bar_where_it_was_forbidden(capsys, monkeypatch):
    assert shown(capsys, monkeypatch, False, terminal=True) == ("", "")


def test_another_process_shows_nothing(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert shown(capsys, monkeypatch, True, terminal=True) == ("", "")


@pytest.mark.parametrize(
    ("kernel", "bar"), [("ZMQInteractiveShell", True), ("TerminalInteractiveShell", False)]
)
def test_a_notebook_is_known_by_its_kernel(capsys, monkeypatch, kernel, bar):
    shell = type(kernel, (), {})()
    module = types.ModuleType("IPython")
    module.get_ipython = lambda: shell
    monkeypatch.setitem(sys.modules, "IPython", module)
    _, err = shown(capsys, monkeypatch, None)
    assert ("2/2" in err) == bar
