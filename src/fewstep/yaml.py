"""Run files: plain YAML, read safely.

What stands there without quotes stays as it was typed, a `Word`: the option that takes it says
what it stands for (`typed`). So the folder `2024-05-01` is no date and the folder `1e3` no number.
"""

import io
import math
import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

LIMIT = 200_000  # characters; a run file has a few thousand
MOST_EVENTS = 20_000  # of the parser, two for each list or mapping, one for each value and key
DEEPEST = 50  # lists and mappings inside each other
LONGEST_NUMBER = 300  # characters
NOTHING = ("", "~", "null", "none")
WHOLE = re.compile(r"[-+]?(0[xX][0-9a-fA-F_]+|0o[0-7_]+|[0-9][0-9_]*)")
NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
INFINITE = {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}
NAMED = {"true": True, "false": False, "~": None, "null": None, "": None}
SPECIAL: dict[str, Any] = INFINITE | NAMED


class Word(str):
    """A value as it was typed, without quotes around it."""


def typed(value: Any, hint: Any) -> Any:
    """What a user's value stands for where an option of this type takes it.

    Text and names are taken as they are, quotes around them are optional; `{…}` and `[…]` are YAML
    where no text is wanted; null and none are nothing where nothing is allowed; one entry of a list
    needs no brackets. Raises ValueError for what is not YAML. What is no `Word`, and holds none, is
    given back.
    """
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) in (Union, types.UnionType):
        return _typed_as_one_of(value, get_args(hint))
    if hint is str or hint is Path or _is_of_names(hint):
        return unquoted(value) if isinstance(value, Word) else value
    if callable(getattr(hint, "parse", None)):  # a choice, which looks at its options itself
        return opened(value, "{")
    value = _as_list(opened(value), hint)
    if isinstance(value, list) and get_origin(hint) in (tuple, list):
        return _typed_list(value, get_args(hint))
    if isinstance(value, dict) and get_origin(hint) in (dict, Mapping):
        return {str(key): typed(one, get_args(hint)[1]) for key, one in value.items()}
    found = settled(value)
    if isinstance(found, bool) and hint in (int, float):
        return str(value)  # Python counts with true and false, nobody else does
    return found


def _as_list(value: Any, hint: Any) -> Any:
    """A list of one word that stands without brackets, where a list may have any number of entries
    and the word can be one.
    """
    of = get_args(hint)
    of_any_number = get_origin(hint) in (tuple, list) and of[1:] in ((), (Ellipsis,))
    if not of_any_number or not isinstance(value, Word) or not value:
        return value
    found = typed(value, of[0])
    wants_number = typed(Word("1"), of[0]) == 1
    return value if wants_number and isinstance(found, str) else [value]


def _typed_list(values: list[Any], hints: tuple[Any, ...]) -> list[Any]:
    """As `typed`, of a list: each of one type, or each of its own."""
    if hints[-1] is Ellipsis or len(hints) == 1:
        return [typed(value, hints[0]) for value in values]
    if len(hints) != len(values):
        return [settled(value) for value in values]
    return [typed(value, hint) for value, hint in zip(values, hints, strict=True)]


def _typed_as_one_of(value: Any, hints: tuple[Any, ...]) -> Any:
    """As `typed`, of a union: a number where the text is one and a number is allowed."""
    wanted = [hint for hint in hints if hint is not type(None)]
    if len(wanted) < len(hints) and isinstance(value, Word) and value.lower() in NOTHING:
        return None
    if len(wanted) == 1:
        return typed(value, wanted[0])
    if all(hint is str or _is_of_names(hint) for hint in wanted):
        return typed(value, str)
    return settled(opened(value))


def _is_of_names(hint: Any) -> bool:
    return get_origin(hint) is Literal and all(isinstance(one, str) for one in get_args(hint))


def unquoted(word: str) -> str:
    """The text without the quotes around the whole of it: 'it''s', "a\\tb"."""
    quote, inner = word[:1], word[1:-1]
    if len(word) < 2 or quote not in ("'", '"') or word[-1] != quote:
        return str(word)
    if quote == "'":
        return str(word) if "'" in inner.replace("''", "") else inner.replace("''", "'")
    if "\\" not in inner:
        return str(word) if '"' in inner else inner
    try:
        found = words_of(word, word)
    except ValueError:
        return str(word)
    return str(word) if isinstance(found, Word) else str(found)


def opened(value: Any, brackets: str = "{[") -> Any:
    """A word that begins with one of these brackets as the list or mapping that it holds, one in
    quotes as the text; anything else as it is.
    """
    if not isinstance(value, Word):
        return value
    if value[:1] and value[0] in brackets:
        return words_of(value, value if len(value) <= 80 else f"{value[:80]}…")
    text = unquoted(value)
    return value if text == value else text


def settled(value: Any) -> Any:
    """Plain data in which each word is what YAML says of it: a number, true, nothing, else text."""
    if isinstance(value, Mapping):
        return {str(key): settled(one) for key, one in value.items()}
    if isinstance(value, list):
        return [settled(one) for one in value]
    if not isinstance(value, Word):
        return value
    if len(value) > LONGEST_NUMBER:
        return str(value)
    if value.lower() in SPECIAL:
        return SPECIAL[value.lower()]
    if WHOLE.fullmatch(value):
        digits = value.lower().replace("_", "")
        return int(digits, 16 if "x" in digits else 8 if "o" in digits else 10)
    return float(value) if NUMBER.fullmatch(value) else str(value)


def to_yaml(value: Any) -> str:
    """Plain data as YAML, keys in their order."""
    from ruamel.yaml import YAML

    out = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(value, out)
    return out.getvalue()


def from_yaml(text: str, name: str) -> Any:
    """Plain data of a YAML text, where no option says what its words stand for. Errors as of
    `words_of`.
    """
    return settled(words_of(text, name))


def words_of(text: str, name: str) -> Any:
    """Lists, mappings, words and (in quotes) text of a YAML text: no anchors, which can grow
    without bound, no tags, no duplicate keys.

    `name` stands in the ValueError of a text that is not YAML.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    if len(text) > LIMIT:
        raise ValueError(f"{name} is too long for a run file: more than {LIMIT:,} characters")
    try:
        return _composed(YAML(typ="safe", pure=True).parse(text))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    except MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise ValueError(f"{name} is not valid YAML: {error.problem}{line}") from None
    except (YAMLError, OverflowError) as error:
        raise ValueError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from None


def _composed(events: Iterable[Any]) -> Any:
    """The value that the parser's events build, without recursion: a text may nest as it likes."""
    from ruamel.yaml import events as kinds

    waiting: list[list[Any]] = [[]]  # what is begun: the document, and what is open inside
    for count, event in enumerate(events):
        if count > MOST_EVENTS:
            raise ValueError("too many values for a run file")
        if isinstance(event, kinds.AliasEvent):
            raise ValueError("YAML aliases are not allowed")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"YAML tags are not allowed ({event.tag})")
        if isinstance(event, kinds.ScalarEvent):
            waiting[-1].append(event.value if event.style else Word(event.value))
        elif isinstance(event, kinds.CollectionStartEvent):
            waiting.append([])
        elif isinstance(event, kinds.CollectionEndEvent):
            values = waiting.pop()
            mapping = isinstance(event, kinds.MappingEndEvent)
            waiting[-1].append(_mapping(values) if mapping else values)
        if len(waiting) > DEEPEST:
            raise ValueError("nested too deeply for a run file")
    if len(waiting[0]) > 1:
        raise ValueError("more than one YAML document")
    return waiting[0][0] if waiting[0] else None


def _mapping(values: list[Any]) -> dict[str, Any]:
    """Of keys and values in turn."""
    found: dict[str, Any] = {}
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, str):
            raise ValueError("a list or a mapping cannot be the name of a value")
        if key in found:
            raise ValueError(f"duplicate key {str(key)!r}")
        found[str(key)] = value
    return found


def read_yaml(path: Path) -> Any:
    """As `from_yaml`, of a file; ValueError with its name where it is no text or no YAML."""
    return settled(read_words(path))


def read_words(path: Path) -> Any:
    """As `words_of`, of a file; ValueError with its name where it is no text or no YAML."""
    with path.open("rb") as file:
        content = file.read(4 * LIMIT + 1)  # a character has up to four bytes
    if len(content) > 4 * LIMIT:
        raise ValueError(f"{path} is too long for a run file: more than {LIMIT:,} characters")
    try:
        return words_of(content.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error}") from None
