"""A recipe or a run file, with the overrides of the command line, as a validated run."""

from __future__ import annotations

import ast
import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.options import first_sentence
from fewstep.plugins import told
from fewstep.yaml import from_yaml, read_yaml

if TYPE_CHECKING:
    from fewstep.run import Run

RUNS = Path("runs")


def listed(package: str) -> dict[str, str]:
    """The files of a package with the first sentence of each docstring, read without importing."""
    found = {}
    for path in sorted((Path(__file__).parent.parent / package).glob("*.py")):
        if path.stem != "__init__":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found[path.stem] = first_sentence(ast.get_docstring(tree) or "")
    return found


def configured(recipe: str, overrides: Sequence[str]) -> tuple[Run, Path]:
    """The run and its folder. ValueError (pydantic's has every error) or FileNotFoundError."""
    from fewstep.run import Run

    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise FileNotFoundError(f"no run file {path}")
        plain = read_yaml(path)
        if not isinstance(plain, dict):
            raise ValueError(f"{path} is no run file: it does not hold named values")
        name = path.parent.name if path.name == "run.yaml" else path.stem
    else:
        names = [
            module.name
            for module in pkgutil.iter_modules(importlib.import_module("fewstep.recipes").__path__)
        ]
        if recipe not in names:
            near = difflib.get_close_matches(recipe, names, n=2)
            meant = (
                f"did you mean {' or '.join(near)}?"
                if near
                else "`fewstep inspect recipes` lists what there is"
            )
            raise ValueError(f"no recipe or run file {recipe!r}; {meant}")
        plain, name = importlib.import_module(f"fewstep.recipes.{recipe}").recipe().dump(), recipe
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"expected option=value, got {override!r}")
        if key == "name":
            name = value
        else:
            _set(plain, key.split("."), from_yaml(value, override))
    if not name or Path(name).name != name or name == "..":
        raise ValueError(f"name={name!r} must be a plain folder name; runs are kept in {RUNS}/")
    with told(plain.pop("plugins", None)):
        return Run.parse(plain), RUNS / name


def _set(plain: dict[str, Any], keys: list[str], value: Any) -> None:
    """Sets a dotted path; a name on the way ("method=x" before "method.y=1") becomes a mapping of
    that kind.
    """
    *way, last = keys
    for key in way:
        inner = plain.get(key)
        if not isinstance(inner, dict):
            inner = {} if inner is None else {"kind": inner}
        plain[key] = inner
        plain = inner
    plain[last] = value


def source_of(text: str, overrides: Sequence[str] = ()) -> Any:
    """A data source by name (digits) or by path, with `option=value` overrides. The kind is what is
    found there.
    """
    from fewstep.data.source import Source

    names = [
        name for name, kind in Source.kinds().items() if "path" not in kind.__dataclass_fields__
    ]
    plain: dict[str, Any] = {"kind": text} if text in names else {"path": text}
    if text not in names and not Path(text).exists():
        raise FileNotFoundError(
            f"no data {text!r}: expected a file, a folder, or {' or '.join(names)}"
        )
    for override in overrides:
        key, _, value = override.partition("=")
        _set(plain, key.split("."), from_yaml(value, override))
    return Source.parse(plain if "kind" in plain else {"kind": Source.kind_at(Path(text))} | plain)
