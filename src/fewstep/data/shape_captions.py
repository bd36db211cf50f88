"""What can be said of pictures of shapes: the attributes, captions made of them, and back.

A description is a mapping from attributes to values: all of a picture, or what a caption says. Of
one object it has `size`, `colour`, `shape` and `place`; of two `first size`, `second colour` …, the
`relation` of the first to the second, and the `line` (row or column) in which both lie.
"""

import re
from collections.abc import Mapping, Sequence

Description = dict[str, str]

SIZES = ("small", "large")
COLOURS = ("red", "yellow", "green", "cyan", "blue", "magenta")
SHAPES = ("circle", "square", "triangle")
PLACES = (
    *("top left", "top", "top right"),
    *("left", "centre", "right"),
    *("bottom left", "bottom", "bottom right"),
)
RELATIONS = ("left of", "right of", "above", "below")
LINES = ("1", "2", "3")

OBJECT = {"size": SIZES, "colour": COLOURS, "shape": SHAPES}
ONE: Mapping[str, Sequence[str]] = {**OBJECT, "place": PLACES}
TWO: Mapping[str, Sequence[str]] = {
    **{f"first {name}": values for name, values in OBJECT.items()},
    **{f"second {name}": values for name, values in OBJECT.items()},
    "relation": RELATIONS,
    "line": LINES,
}


def caption_of(said: Mapping[str, str]) -> str:
    """A caption that says this, each attribute once. The line of two objects has no words."""
    if "relation" not in said:
        place = f" at the {said['place']}" if "place" in said else ""
        return f"{_named(said, '')}{place}"
    return f"{_named(said, 'first ')} {said['relation']} {_named(said, 'second ')}"


def parsed(caption: str) -> Description:
    """What a caption says. ValueError where it is none of these."""
    found = _ONE.fullmatch(caption) or _TWO.fullmatch(caption)
    if found is None:
        raise ValueError(f"{caption[:80]!r} is no caption of data=shapes")
    said = {}
    for name, value in found.groupdict().items():
        if value not in (None, "shape"):
            said[name.replace("_", " ")] = value
    return said


def attributes_of(said: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
    """All attributes of the pictures that a caption with this description is of."""
    return TWO if "relation" in said else ONE


def ends(relation: str, line: str) -> tuple[int, int]:
    """Where the first and the second of two objects lie, by their numbers among PLACES."""
    number = LINES.index(line)
    across = relation in ("left of", "right of")
    begin, end = (3 * number, 3 * number + 2) if across else (number, number + 6)
    return (begin, end) if relation in ("left of", "above") else (end, begin)


def truth(attribute: str, said: Mapping[str, str]) -> dict[str, float]:
    """The probability of each value of an attribute that was left out, given what was said.

    All are even, but for the colours of two objects, which are never the same.
    """
    values = [*attributes_of(said)[attribute]]
    if attribute.endswith(" colour"):
        other = "second colour" if attribute == "first colour" else "first colour"
        values = [value for value in values if value != said.get(other)]
    return dict.fromkeys(values, 1 / len(values))


def _named(said: Mapping[str, str], which: str) -> str:
    words = ["a"]
    for name in ("size", "colour"):
        if which + name in said:
            words.append(said[which + name])
    return " ".join([*words, said.get(f"{which}shape", "shape")])


def _pattern(which: str) -> str:
    size, colour, shape = ("|".join(values) for values in OBJECT.values())
    return (
        rf"a(?: (?P<{which}size>{size}))?(?: (?P<{which}colour>{colour}))?"
        rf" (?P<{which}shape>{shape}|shape)"
    )


_ONE = re.compile(rf"{_pattern('')}(?: at the (?P<place>{'|'.join(PLACES)}))?")
_TWO = re.compile(
    rf"{_pattern('first_')} (?P<relation>{'|'.join(RELATIONS)}) {_pattern('second_')}"
)
