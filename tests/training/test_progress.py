"""Progress: a bar where somebody can see one, lines where they are asked for, else nothing."""

import io
import re
import sys
import types

import pytest
from rich.console import Console, Group
from tests.models.made import made

from fewstep.learning.method import Clock
from fewstep.models.request import LOOKING_ON, Request
from fewstep.training.progress import (
    _bar,
    _clock,
    _numbers,
    _rate,
    bar_on,
    sampling_shown,
    training_progress,
)
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


@pytest.mark.parametrize(("seconds", "told"), [(2.0, True), (0.05, False)])
def test_how_long_it_takes_is_said_once(capsys, monkeypatch, seconds, told):
    """As soon as five seconds of steps tell it, without the first, if it is more than a minute."""
    now = [0.0]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    monkeypatch.setattr("fewstep.training.progress.time.monotonic", lambda: now[0])
    with training_progress(150, "run", True) as show:
        for step in range(150):
            now[0] += 60.0 if step == 0 else seconds
            show(Seen(Clock(step, 150, 8), {}, 0, dict))
    # Behind step 4, 146 are left: 292 s.
    expected = ["run: 2 s a step, about 5 min left"] if told else []
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize("progress", [None, False])
def test_nothing_where_nobody_looks(capsys, monkeypatch, progress):
    assert shown(capsys, monkeypatch, progress) == ("", "")


@pytest.mark.parametrize("progress", [None, True])
def test_a_bar_on_a_terminal(capsys, monkeypatch, progress):
    out, err = shown(capsys, monkeypatch, progress, terminal=True)
    assert out == ""
    assert "2/2" in err
    assert "loss 0.25" in err


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_while_images_are_made(capsys, monkeypatch, terminal):
    """It counts steps of batches; on a terminal alone, and only where it is asked for."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    model = made()
    model.generate(num=5, steps=3, batch=2)
    assert capsys.readouterr().err == ""
    with sampling_shown():
        shown = model.generate(num=5, steps=3, batch=2)
    err = capsys.readouterr().err
    assert ("5 images" in err) == terminal
    assert ("9/9" in err) == terminal
    assert shown.equal(model.generate(num=5, steps=3, batch=2))
    assert capsys.readouterr().err == ""


def test_long_sampling_says_how_far_it_is_where_nobody_sees_a_bar(capsys, monkeypatch):
    """A line a minute on standard output."""
    now = [0.0]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    monkeypatch.setattr("fewstep.training.progress.time.monotonic", lambda: now[0])
    model = made()
    answer = model.answer(Request(num=5, steps=3, batch=2))
    with sampling_shown(), LOOKING_ON.get()(answer) as look:
        for seen in answer.walk():
            now[0] += 25.0
            look(seen)
    assert capsys.readouterr().out.splitlines() == [
        "5 images: 33%, 3 min left",
        "5 images: 67%, 2 min left",
        "5 images: 100%, 0 s left",
    ]


LINE = {
    **{"step": 9, "consistency": 0.0123456, "distance": 0.0123456, "rate": 1.0, "skipped": 0.0},
    **{"norm.student": 3.0, "health.held_out_loss": 0.007252, "health.distance": 0.5151},
}


@pytest.mark.parametrize("width", [40, 60, 100])
def test_a_narrow_terminal_cuts_neither_count_nor_times(width):
    """Whatever the numbers say, which stand on a line of their own."""
    file, now = io.StringIO(), [0.0]
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    progress = bar_on(console, "a_run_with_a_name_that_is_long", 60)
    progress.get_time = lambda: now[0]
    for task in progress.tasks:
        task._get_time = progress.get_time
        task.start_time = 0.0
    for step in range(1, 10):
        now[0] = 100.0 * step
        progress.update(0, completed=step, numbers=_numbers(LINE))
    console.print(Group(*progress.get_renderables()))
    bar, numbers = file.getvalue().splitlines()[-2:]
    assert len(bar) <= width
    assert bar.rstrip().endswith("9/60 100 s each 15:00 < 1:25:00")
    assert bar.startswith("a")
    assert "━" in bar or width < 60
    assert numbers.strip().startswith("consistency 0.0123, held out lo")
    assert len(numbers) <= width
    if width == 100:
        assert numbers.strip() == "consistency 0.0123, held out loss 0.00725, distance 0.515"


def test_the_rate_of_a_run_that_goes_on_is_that_of_its_own_steps(monkeypatch):
    """Not of those that were done before."""
    now = [0.0]
    monkeypatch.setattr("rich.console.monotonic", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with _bar(2000, "run") as move:
        for step in range(1000, 1005):
            now[0] += 2.0
            move(Seen(Clock(step, 2000, 8), {}, 0, dict))
        shown = sys.stderr
    assert "1005/2000 2 s each 0:10 < 33:10" in shown.getvalue()


def test_numbers_of_one_name_are_told_apart():
    line = {"step": 9, "consistency": 1.0, "distance": 0.25, "health.distance": 0.5}
    assert _numbers(line) == "consistency 1, distance 0.25, health.distance 0.5"


def test_fast_steps_and_short_times():
    assert [_rate(speed) for speed in (None, 0.0, 12.345, 1.0, 0.5)] == [
        *("–/s", "–/s", "12.3/s", "1/s", "2 s each")
    ]
    assert [_clock(seconds) for seconds in (None, 0, 61.4, 3599.6, 86400)] == [
        *("–:––", "0:00", "1:01", "1:00:00", "24:00:00")
    ]


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
