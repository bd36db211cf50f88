"""Recipes: named runs, one file for each family of data, one function for each recipe.

A recipe is a public function without parameters; the first sentence of its docstring is what
`fewstep inspect recipes` shows, the rest says what came out of it, measured. One that fits itself
to data has the parameter `pictures`, a `Sight` of them, with an example as its default. Nothing is
imported to list them.
"""

import ast
import difflib
import importlib
from pathlib import Path
from typing import Any

from fewstep.choice import Choice
from fewstep.options import first_sentence

HERE = Path(__file__).parent


def listed() -> dict[str, str]:
    """Every recipe with the first sentence of its docstring."""
    return {name: first_sentence(text) for name, text in _docstrings().items()}


def said_of(name: str) -> str:
    """All of a recipe's docstring."""
    return _docstrings()[name]


def fits(name: str) -> bool:
    """Whether it is a recipe that fits itself to data."""
    for file in sorted(HERE.glob("[!_]*.py")):
        for function in _functions(file):
            if function.name == name:
                return bool(function.args.args)
    return False


def recipe(name: str, pictures: Any = None) -> Choice:
    """The run of that name. pictures: a data source, or a `Sight` of one, for a recipe that fits
    itself to them. ValueError with the nearest names where there is none, and for pictures where
    the recipe takes none.
    """
    if pictures is not None and name in listed() and not fits(name):
        raise ValueError(f"{name} does not fit itself to pictures: replace its data instead")
    for file in sorted(HERE.glob("[!_]*.py")):
        if name in [function.name for function in _functions(file)]:
            function = getattr(importlib.import_module(f"{__name__}.{file.stem}"), name)
            run: Choice = function() if pictures is None else function(_seen(pictures))
            return run
    near = difflib.get_close_matches(name, listed(), n=2)
    lists = "`fewstep inspect recipes` lists what there is"
    meant = f"did you mean {' or '.join(near)}?" if near else lists
    raise ValueError(f"no recipe or run file {name!r}; {meant}")


def _seen(pictures: Any) -> Any:
    """A `Sight` of a source, or that which was given."""
    from fewstep.data.sight import Sight, sight_of

    return pictures if isinstance(pictures, Sight) else sight_of(pictures)


def _docstrings() -> dict[str, str]:
    """Of every recipe, by name."""
    found = {}
    for file in sorted(HERE.glob("[!_]*.py")):
        for function in _functions(file):
            found[function.name] = ast.get_docstring(function) or ""
    return dict(sorted(found.items()))


def _functions(file: Path) -> list[ast.FunctionDef]:
    """The recipes of a file: its public functions that take nothing, or `pictures`."""
    found = []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        takes = node.args
        names = [taken.arg for taken in (*takes.posonlyargs, *takes.args, *takes.kwonlyargs)]
        fits_itself = names == ["pictures"] and takes.defaults
        if fits_itself or not names:
            found.append(node)
    return found
