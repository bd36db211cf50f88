"""What users read about options: name, type in words, default, and the sentence under the field.

    bins: Count = 18
    "Intervals of the grid."

The sentence is a literal under the field, which Python passes over; it is read from the source, so
a plug-in's options are described as our own are.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import math
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

import fewstep
from fewstep.choice import MANY, MOST, SEEDS, Choice, flat, kind_of, needed

NAMES = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
    typing.Any: "anything",
}


class Option(NamedTuple):
    """An option. words: its type. default: None where it has to be given. families: those of the
    choices that it takes.
    """

    name: str
    words: str
    default: str | None
    sentence: str
    families: tuple[type[Choice], ...] = ()


def options_of(cls: type[Choice]) -> list[Option]:
    """The options of a choice, in their order."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found = []
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        hint = hints[field.name]
        default = None if needed(field) else shown(_default(field))
        inner = tuple(families_in(hint))
        found.append(Option(field.name, in_words(hint), default, sentence(cls, field.name), inner))
    return found


def sentence(cls: type, option: str) -> str:
    """The sentence under a field, in the class or the first above it that has one; else ''."""
    for one in cls.__mro__:
        written = _written(one.__module__).get((one.__qualname__, option))
        if written:
            return written
    return ""


@functools.cache
def _written(module: str) -> dict[tuple[str, str], str]:
    """The literals under the fields of all classes of a module: (class, field) -> text."""
    try:
        source = inspect.getsource(importlib.import_module(module))
    except (OSError, TypeError):  # a notebook, or a module that is no file
        return {}
    found: dict[tuple[str, str], str] = {}
    waiting: list[tuple[str, ast.AST]] = [("", ast.parse(source))]
    while waiting:
        prefix, node = waiting.pop()
        for one in ast.iter_child_nodes(node):
            if isinstance(one, ast.ClassDef):
                name = prefix + one.name
                waiting.append((f"{name}.", one))
                for field, text in _literals(one):
                    found[name, field] = text
    return found


def _literals(cls: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in zip(cls.body, cls.body[1:], strict=False):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            yield field.target.id, " ".join(str(below.value.value).split())


def in_words(hint: Any) -> str:
    """A type as users say it: `whole number >= 1`, `euler | heun | midpoint`, `list of number`."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return in_words(inner[0]) + _limits(inner[1:])
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(one) for one in inner)
    if origin is tuple and inner[-1] is Ellipsis:
        return f"list of {in_words(inner[0])}"
    if origin is tuple:
        return f"list of {len(inner)}: {', '.join(in_words(one) for one in inner)}"
    if origin in (dict, Mapping):
        return f"{in_words(inner[1])}, for names"
    if hint is type(None):
        return "none"
    if inspect.isclass(hint) and issubclass(hint, Choice):
        return kind_of(hint)
    return NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def _limits(constraints: tuple[Any, ...]) -> str:
    unsaid = (MANY, MOST, SEEDS, -SEEDS)  # users need not know how far numbers of ours go
    low, high = "", ""
    for one in constraints:
        if isinstance(one, Ge) and one.ge not in unsaid:
            low = f">= {one.ge}"
        elif isinstance(one, Gt):
            low = f"> {one.gt}"
        elif isinstance(one, Le) and one.le not in unsaid:
            high = f"<= {one.le}"
        elif isinstance(one, Lt) and one.lt not in (*unsaid, math.inf):
            high = f"< {one.lt}"
    limits = [limit for limit in (low, high) if limit]
    return f" {', '.join(limits)}" if limits else ""


def families_in(hint: Any) -> list[type[Choice]]:
    """The classes of choices that a type names, at any depth."""
    if inspect.isclass(hint) and issubclass(hint, Choice):
        return [hint]
    found = []
    for one in get_args(hint):
        found += families_in(one)
    return found


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    assert field.default_factory is not dataclasses.MISSING
    return field.default_factory()


def shown(value: Any) -> str:
    """A value as one line: numbers and text as they are typed, a choice as its kind with the
    options that are not its defaults, `karras(rho=20)`.
    """
    if isinstance(value, Choice):
        options = []
        for field in dataclasses.fields(value):  # type: ignore[arg-type]
            mine = getattr(value, field.name)
            if needed(field) or mine != _default(field):
                options.append(f"{field.name}={shown(mine)}")
        return kind_of(type(value)) + (f"({', '.join(options)})" if options else "")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(shown, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return "none" if value is None else str(value) or "''"


def values(choice: Choice, path: str = "") -> Iterator[tuple[str, str, Option]]:
    """Every option of a choice and of those inside it: dotted path, value, option in words."""
    for option in options_of(type(choice)):
        value = getattr(choice, option.name)
        here = f"{path}.{option.name}" if path else option.name
        if isinstance(value, Choice):
            yield here, kind_of(type(value)), option
            yield from values(value, here)
        else:
            yield here, shown(value), option


def about(cls: type[Choice]) -> str:
    """What a kind is, in a sentence: its file's, where the file has its name, else its own."""
    module = sys.modules[cls.__module__]
    own_file = module.__name__ == f"{cls.folder}.{kind_of(cls)}"
    return first_sentence((module.__doc__ or "") if own_file else docstring(cls))


def docstring(cls: type) -> str:
    """What was written below a class; nothing where dataclasses put the signature instead."""
    text = inspect.getdoc(cls) or ""
    return "" if text.startswith(f"{cls.__name__}(") else text


def first_sentence(text: str) -> str:
    """The first sentence of a docstring, on one line."""
    first = " ".join(text.partition("\n\n")[0].split())
    end = re.search(r"(?<!\bal)(?<!\beq)\.(?= |$)", first)  # "Song et al. 2023" goes on
    return first[: end.end()] if end else first


def families() -> list[type[Choice]]:
    """Every family of choices of fewstep: the classes directly below `Choice`, by their name."""
    for module in pkgutil.walk_packages(fewstep.__path__, "fewstep."):
        importlib.import_module(module.name)
    found = [one for one in Choice.__subclasses__() if one.__module__.startswith("fewstep.")]
    return sorted(found, key=kind_of)


def families_called(name: str) -> list[type[Choice]]:
    """The families of a name: their own, in the plural too, or what a run calls them (`data`)."""
    found: dict[type[Choice], None] = {}
    for family in families():
        if flat(name) in {flat(word) for word in _plurals(kind_of(family))}:
            found[family] = None
        if family in family.kinds().values():  # a run, its trainer: their options name others
            for option in options_of(family):
                if flat(option.name) == flat(name):
                    found |= dict.fromkeys(option.families)
    return list(found)


def _plurals(word: str) -> set[str]:
    return {word, f"{word}s", f"{word}es", f"{word[:-1]}ies"}


def kinds_called(name: str) -> list[tuple[type[Choice], type[Choice]]]:
    """The kinds of that name, each behind its family; several families may have one."""
    found = []
    for family in families():
        for kind, cls in family.kinds().items():
            if flat(kind) == flat(name):
                found.append((family, cls))
    return found
