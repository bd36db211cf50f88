"""A recipe or a run file, with the overrides of the command line, as a validated run."""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep import recipes
from fewstep.data.folder import Folder
from fewstep.data.sight import Sight, sight_of
from fewstep.data.source import Source
from fewstep.plugins import told
from fewstep.run import Run
from fewstep.text import place
from fewstep.yaml import NOTHING, Word, opened, read_words, settled, unquoted

RUNS = Path("runs")
DEEPEST = 20  # names in one option, method.solver.steps has three


def configured(recipe: str, overrides: Sequence[str]) -> tuple[Run, Path]:
    """The run and its folder. recipe: its name, a run file, or the folder of a run. ValueError
    (pydantic's has every error) or FileNotFoundError.
    """
    plain, name, runs = _begun(recipe, overrides)
    asked = _overridden(plain, overrides)
    name = name if asked is None else asked
    if not name or Path(name).name != name or name == "..":
        raise ValueError(f"name={name!r} must be a plain folder name; runs are kept in {runs}/")
    with told(settled(plain.pop("plugins", None))):
        return Run.parse(plain), runs / name


def _begun(recipe: str, overrides: Sequence[str]) -> tuple[dict[str, Any], str, Path]:
    """What a recipe or a run file says, the name of its run, and the folder in which runs are."""
    path, runs = place(recipe), RUNS
    if path.is_dir() and recipe not in recipes.listed():
        path /= "run.yaml"
        if not path.is_file():
            raise FileNotFoundError(f"{recipe} is no run: it holds no run.yaml")
    if path.suffix not in (".yaml", ".yml"):
        sight = _sight(overrides) if recipes.fits(recipe) else None
        return recipes.recipe(recipe, sight).dump(), recipe, runs
    folder = Path(os.path.abspath(path)).parent
    name = folder.name if path.name == "run.yaml" else path.stem
    if folder == Path.cwd() and (folder / "status.json").exists():
        runs = Path("..")  # this run goes on here, not in runs/ inside itself
    return _run_file(path), name, runs


def _overridden(plain: dict[str, Any], overrides: Sequence[str]) -> str | None:
    """Sets the options; the name, where one is given."""
    name = None
    named = {_split(override)[0] for override in overrides}
    for override in overrides if {"data", "data.kind"} & named else _path_first(overrides):
        key, value = _split(override)
        if key == "name":
            name = unquoted(value)
        elif key in ("data", "data.kind"):
            plain["data"] = _of_kind(plain.get("data"), value)
        elif key == "data.path" and not {"data", "data.kind"} & named:
            plain["data"] = _found(plain.get("data"), value)
        else:
            _set(plain, key, value)
    return name


def _sight(overrides: Sequence[str]) -> Sight | None:
    """What a recipe that fits itself to data is to see: the data that options name; None where
    they name none.
    """
    words = {}
    for override in overrides:
        key, value = _split(override)
        if key == "data" or key.startswith("data."):
            words[key] = value
    if not words:
        return None
    plain: dict[str, Any] = {}
    for key, value in words.items():
        _set(plain, key, value)
    data = opened(plain["data"], "{")
    options = dict(data) if isinstance(data, dict) else {"kind": data}
    if "kind" not in options:
        path = place(unquoted(options.get("path", "")))
        if not path.exists():
            raise FileNotFoundError(f"no data at {path}: give data.path=FOLDER, your pictures")
        options["kind"] = Source.kind_at(path)
    return sight_of(Source.parse(options))


def _run_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no run file {path}")
    plain = read_words(path)
    if not isinstance(plain, dict):
        raise ValueError(f"{path} is no run file: it does not hold named values")
    return plain


def _split(override: str) -> tuple[str, Word]:
    key, equals, value = override.partition("=")
    if not equals:
        raise ValueError(f"expected option=value, got {override!r}")
    return key, Word(value)


def _set(plain: dict[str, Any], path: str, value: Word) -> None:
    """Sets a dotted path; a name on the way ("method=x" before "method.y=1") becomes a mapping of
    that kind.
    """
    *way, last = path.split(".")
    if len(way) >= DEEPEST:
        raise ValueError(f"no option has so many names: {path[:60]}…")
    for key in way:
        inner = opened(plain.get(key), "{")
        if not isinstance(inner, dict):
            nothing = inner is None or (isinstance(inner, Word) and inner.lower() in NOTHING)
            inner = {} if nothing else {"kind": inner}
        plain[key] = inner
        plain = inner
    plain[last] = value


def _of_kind(data: Any, value: Word) -> Any:
    """The data when another kind is named: what all kinds have (split, flip …) and the path stay as
    they were, and what only the old one has is dropped. A mapping is all that there is.
    """
    old, kind = opened(data, "{"), unquoted(value)
    if not isinstance(old, dict) or isinstance(opened(value, "{"), dict):
        return value
    if kind == old.get("kind"):
        return old
    names = [field.name for field in dataclasses.fields(Source)]
    names += ["path", "size", "channels", "on_bad"]
    if kind in Source.kinds():
        own = [field.name for field in dataclasses.fields(Source.kinds()[kind])]
        names = [name for name in names if name in own]
    return {"kind": value, **{name: old[name] for name in names if name in old}}


def _path_first(overrides: Sequence[str]) -> list[str]:
    """Where the data are before what else is said of them, as they may be of another kind."""
    return sorted(overrides, key=lambda override: not override.startswith("data.path="))


def _found(data: Any, path: Word) -> Any:
    """The data at another path: of the kind that is there, where the one that was named reads
    nothing of it, or is of pictures that a table or captions speak for; and no option says which.
    """
    old = opened(data, "{")
    if not isinstance(old, dict):
        old = {"kind": old}
    there = place(unquoted(path))
    kind = Source.kinds().get(str(old.get("kind")))
    if kind is not None and there.exists() and (kind is Folder or not kind.files_at(there)):
        with contextlib.suppress(ValueError):  # of what nobody reads the named kind says more
            found = Source.kind_at(there)
            if found not in kind.reads_also:
                old = _of_kind(old, Word(found))
    return {**old, "path": path}


def with_options(source: Source, overrides: Sequence[str]) -> Source:
    """The source with `option=value` overrides."""
    return Source.parse(_set_all(source.dump(), overrides))


def _set_all(plain: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The same mapping, with `option=value` overrides."""
    for override in overrides:
        _set(plain, *_split(override))
    return plain


def source_of(text: str, overrides: Sequence[str] = ()) -> Source:
    """A data source by name (digits) or by path, with `option=value` overrides. The kind is what is
    found there.
    """
    names = []
    for name, kind in Source.kinds().items():
        if "path" not in kind.__dataclass_fields__:
            names.append(name)
    plain: dict[str, Any] = {"kind": text} if text in names else {"path": text}
    if text not in names and not place(text).exists():
        raise FileNotFoundError(
            f"no data {text!r}: expected a file, a folder, or {' or '.join(names)}"
        )
    _set_all(plain, overrides)
    return Source.parse(plain if "kind" in plain else {"kind": Source.kind_at(place(text))} | plain)
