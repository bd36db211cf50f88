"""What is typed is what the option takes: text as it stands, numbers as numbers; hostile YAML ends
at once.
"""

import json
import math
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, MinLen

from fewstep.diffusion.solvers import Solver
from fewstep.yaml import (
    LIMIT,
    MOST_EVENTS,
    Word,
    from_yaml,
    read_yaml,
    to_yaml,
    typed,
    words_of,
)

TEXTS = (
    "imgs #2",
    "2024-05-01",
    "2023",
    "1e3",
    "0x10",
    "1_000",
    "null",
    "none",
    "true",
    "a: b",
    "[x]",
    "{x}",
    "*x",
    "&x",
    "!!int ''",
    "- x",
    "?",
    "",
    " x ",
    "it's",
    "a\nb",
    "café",
    "caf\udce9",
    "%YAML 1.1",
    "9" * 5000,
)


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_taken_as_it_stands(text):
    assert typed(Word(text), str) == text
    assert type(typed(Word(text), str)) is str


@pytest.mark.parametrize("text", [text for text in TEXTS if text])
def test_quotes_are_optional(text):
    assert typed(Word("'" + text.replace("'", "''") + "'"), str) == text
    assert typed(Word(json.dumps(text)), str) == text


def test_quotes_inside_stay():
    for text in ("'a' and 'b'", '"a" b', "'", '"', "'a", 'a"'):
        assert typed(Word(text), str) == text


@pytest.mark.parametrize(
    ("word", "hint", "value"),
    [
        ("5", int, 5),
        ("0x10", int, 16),
        ("1_000", int, 1000),
        ("1e-4", float, 1e-4),
        ("-.5", float, -0.5),
        (".inf", float, math.inf),
        ("010", int, 10),
        ("true", bool, True),
        ("true", int, "true"),
        ("false", Annotated[float, Ge(0)], "false"),
        ("5", Annotated[int, Ge(1)], 5),
        ("0.999", str | None, "0.999"),
        ("null", str | None, None),
        ("none", str | None, None),
        ("", str | None, None),
        ("none", float | None, None),
        ("'none'", str | None, "none"),
        ("1e3", Literal["1e3", "x"], "1e3"),
        ("none", Literal["none", "full"], "none"),
        ("auto", float | Literal["auto"], "auto"),
        ("3", float | Literal["auto"], 3),
        ("3", Literal[3, 4], 3),
        ("heun", Solver, "heun"),
        ("1e3", Solver, "1e3"),
        ("null", Solver | None, None),
        ("'null'", Solver | None, "null"),
        ("{kind: heun}", Solver, {"kind": "heun"}),
        ("[1, 2e0]", tuple[float, ...], [1, 2.0]),
        ("[1, [2, 3]]", tuple[int, tuple[int, ...]], [1, [2, 3]]),
        ("[a b, 2024-05-01, 1e3, null, 'x, #']", tuple[str, ...],
         ["a b", "2024-05-01", "1e3", "null", "x, #"]),
        ("0.99", tuple[float, ...], [0.99]),
        ("749", tuple[tuple[float, ...], ...], [[749]]),
        ("[749]", tuple[tuple[float, ...], ...], [[749]]),
        ("1e3", Annotated[tuple[str, ...], MinLen(1)], ["1e3"]),
        ("3", tuple[int, int], 3),
        ("", tuple[str, ...], None),
        ("none", tuple[float, ...] | None, None),
        ("{1: a, b: 1e3}", dict[str, str], {"1": "a", "b": "1e3"}),
        ("5 # five", int, "5 # five"),
        ("!!int ''", int, "!!int ''"),
        ("2024-05-01", int, "2024-05-01"),
        ("9" * 5000, int, "9" * 5000),
        ("9" * 5000, float, "9" * 5000),
    ],
)  # fmt: skip
def test_the_option_says_what_a_word_is(word, hint, value):
    found = typed(Word(word), hint)
    assert found == value
    assert type(found) is type(value) or isinstance(found, Word)


def test_what_was_not_typed_is_given_back():
    assert typed("[1]", tuple[int, ...]) == "[1]"
    assert typed("null", str | None) == "null"
    assert typed((1, 2), tuple[int, ...]) == (1, 2)


def test_brackets_that_are_no_yaml_are_an_error():
    with pytest.raises(ValueError, match=r"\[0\.9 is not valid YAML"):
        typed(Word("[0.9"), tuple[float, ...])


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_from_a_file(tmp_path, text):
    """Also a name that is no UTF-8, as file systems allow."""
    file = tmp_path / "run.yaml"
    file.write_bytes(to_yaml({"path": text}).encode())
    assert read_yaml(file) == {"path": text}


def test_plain_data():
    text = "a: 1\nb: [x, 2.5, true, null]\nc: {d: '1'}\ne: |\n  two\n  lines\nf:\n"
    found = from_yaml(text, "mine.yaml")
    assert found == {
        "a": 1,
        "b": ["x", 2.5, True, None],
        "c": {"d": "1"},
        "e": "two\nlines\n",
        "f": None,
    }
    assert from_yaml("", "mine.yaml") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: &x 3\nb: *x\n", "aliases"),
        ("a: !!int ''\n", "tags"),
        ("a: !!float ''\n", "tags"),
        ("a: !!bool xyz\n", "tags"),
        ("!foo {a: b}", "tags"),
        ("a: 1\na: 2\n", "duplicate key 'a'"),
        ("? [a]\n: b\n", "the name of a value"),
        ("a: 1\n---\nb: 2\n", "more than one"),
        ("[" * 1000, "too deeply"),
        ("- " * 1000, "too deeply"),
        ("".join(f"{' ' * i}a:\n" for i in range(300)), "too deeply"),
        ("a: [" + "1," * MOST_EVENTS + "]", "too many values"),
        ("".join(f"k{i}: {i}\n" for i in range(MOST_EVENTS // 2)), "too many values"),
        ("a: " + "x" * LIMIT, "too long"),
        ('"\\UFFFFFFFF"', "not valid YAML"),
        ("a: [", "not valid YAML: .* in line 1"),
        ("\x00", "not valid YAML"),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_refused(text, says):
    with pytest.raises(ValueError, match=f"mine.yaml.*{says}"):
        words_of(text, "mine.yaml")


def test_the_length_of_a_file_is_looked_at_before_it_is_read(tmp_path):
    file = tmp_path / "long.yaml"
    with file.open("wb") as opened:
        opened.truncate(6_000_000_000)  # on the disk it has no bytes
    with pytest.raises(ValueError, match=r"long\.yaml is too long"):
        read_yaml(file)
