"""Tables and lists on a terminal, or as JSON."""

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import Any

from fewstep.choice import kind_of
from fewstep.options import Option
from fewstep.text import in_one_line

_COLLECTED: ContextVar[dict[str, Any] | None] = ContextVar("_COLLECTED", default=None)


@contextmanager
def as_json() -> Iterator[None]:
    """Within the block tables, facts and lists are gathered; behind it they are printed as one JSON
    object: rows of tables under "rows", all else by its name. What else is said meanwhile goes to
    standard error.
    """
    found: dict[str, Any] = {}
    token = _COLLECTED.set(found)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _COLLECTED.reset(token)
    print(json.dumps(found, indent=1, ensure_ascii=False))


def gathered(told: Mapping[str, Any]) -> bool:
    """Takes this for JSON, where that is wanted; False where it is to be printed."""
    found = _COLLECTED.get()
    if found is None:
        return False
    for name, value in told.items():
        if isinstance(value, list) and isinstance(found.get(name), list):
            found[name] += value
        else:
            found[name] = value
    return True


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 2) -> None:
    """Aligned columns: the first `texts` to the left, numbers to the right."""
    if gathered({"rows": [dict(zip(columns, row, strict=True)) for row in rows]}):
        return
    rows = [list(map(in_one_line, row)) for row in rows]
    widths = widths_of([columns, *rows])
    for row in [columns, ["-" * width for width in widths], *rows]:
        cells = []
        for place, cell in enumerate(row):
            left = place < texts
            cells.append(cell.ljust(widths[place]) if left else cell.rjust(widths[place]))
        print("  ".join(cells).rstrip())


def widths_of(rows: Sequence[Sequence[str]]) -> list[int]:
    """The widest cell of each column."""
    columns = zip(*rows, strict=True)
    return [max(map(len, column)) for column in columns]


def print_facts(facts: Mapping[str, object]) -> None:
    """A line for each fact: what files say of themselves is one line, too."""
    if gathered({name: plain(fact) for name, fact in facts.items()}):
        return
    for name, fact in facts.items():
        print(f"{in_one_line(name)}: {in_one_line(fact)}")


def plain(fact: object) -> Any:
    """As JSON has it."""
    return fact if isinstance(fact, bool | int | float) else in_one_line(fact)


def print_list(sentences: dict[str, str]) -> None:
    """Names with a sentence each."""
    if gathered(sentences):
        return
    width = max(map(len, sentences), default=0)
    for name, sentence in sentences.items():
        print(f"{name.ljust(width)}  {sentence}".rstrip())


def print_options(rows: Sequence[tuple[str, str, Option]], value: str = "default") -> None:
    """Options by name, with a value and the type in words; below each its sentence, and the kinds
    that it takes.
    """
    if gathered({"options": options_told(rows, value)}):
        return
    head = ("option", value, "type")
    widths = widths_of([head, *((name, shown, option.words) for name, shown, option in rows)])
    print_row(head, widths)
    print_row(["-" * width for width in widths], widths)
    for name, shown, option in rows:
        print_row((name, shown, option.words), widths)
        print_indented(option.sentence)
        for family in option.families:
            kinds = family.offered()
            if list(kinds) == [kind_of(family)]:
                print_indented(f"fewstep inspect {kind_of(family)} shows its options")
            else:
                print_indented(f"{kind_of(family)}: {', '.join(kinds)}")


def options_told(
    rows: Sequence[tuple[str, str, Option]], value: str = "default"
) -> list[dict[str, str]]:
    """The same for JSON."""
    told = []
    for name, chosen, option in rows:
        told.append({"option": name, value: chosen, "type": option.words, "about": option.sentence})
    return told


def print_row(cells: Sequence[str], widths: Sequence[int]) -> None:
    """One line of a table, all columns to the left."""
    print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def print_indented(text: str) -> None:
    """A paragraph below something, as wide as the terminal."""
    width = max(shutil.get_terminal_size().columns, 60)
    for line in textwrap.wrap(text, width - 4):
        print(f"    {line}")
