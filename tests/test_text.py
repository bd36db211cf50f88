"""Foreign text on its way to a terminal."""

import os
from pathlib import Path

import pytest

from fewstep.text import in_one_line, place, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x9b31m", r"\x9b31m"),
        ("a\rb\x08\x07\x00\x7f", r"a\rb\x08\x07\x00\x7f"),
        ("caf\udce9", r"caf\udce9"),
        ("\u202etxt.exe\u2066", r"\u202etxt.exe\u2066"),
        ("a\u2028b\x85c", r"a\u2028b\x85c"),
        ("café 猫 \U0001f600 a\nb\tc", "café 猫 \U0001f600 a\nb\tc"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown


def test_one_line():
    assert in_one_line("a\n b\t\x1b c ") == r"a b \x1b c"
    assert in_one_line({"a\n": 1}) == r"{'a\n': 1}"
    assert in_one_line("x" * 20, 10) == "x" * 10 + "…"
    assert in_one_line("x" * 10, 10) == "x" * 10


def test_places(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert place("~/x") == Path("/home/me/x")
    assert place(Path("~")) == Path("/home/me")
    assert place("./~/x") == Path("~/x")
    assert place("~nobody-at-all/x") == Path("~nobody-at-all/x")
    assert place(os.fsdecode(b"caf\xe9")) == Path(os.fsdecode(b"caf\xe9"))
