"""Choices from outside the package: modules that a user names, packages that somebody installed.

Classes count as kinds where they stand in `fewstep`, in a plug-in, or in the program that runs.
What a run file or a model notes about plug-ins is told in errors and never followed: nothing that
a file says is imported.

    load("my_network.py")    # a file, from where it lies; `--plugin my_network.py` does this
    load("my_lab.networks")  # a module that Python finds

An installed package needs no option: it names its module under the entry point group `fewstep`.

    [project.entry-points.fewstep]
    my_lab = "my_lab.networks"
"""

import functools
import hashlib
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import metadata
from pathlib import Path
from types import ModuleType

from fewstep.text import in_one_line, place

GROUP = "fewstep"
_loaded: dict[str, str] = {}  # top-level name of a module: what was loaded
_made_with: ContextVar[Mapping[str, str]] = ContextVar("made_with", default={})  # noqa: B039


def load(name: str | Path) -> ModuleType:
    """Imports a plug-in: a file ending in .py, or a module by its name.

    Raises FileNotFoundError or ImportError, each naming the plug-in.
    """
    text = str(name)
    module = _from_file(place(text)) if text.endswith(".py") else _from_name(text)
    top = module.__name__.partition(".")[0]
    _loaded.setdefault(top, _described(module))
    return module


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"no plug-in {path}")
    path = path.resolve()
    name = path.stem
    known = sys.modules[name].__spec__ if name in sys.modules else importlib.util.find_spec(name)
    if known is not None and known.origin != str(path):
        where = known.origin or "Python itself"
        raise ImportError(f"plug-in {path}: there is a module {name} already, {where}; rename it")
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # for what the file imports from beside it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ImportError(_broken(str(path), error)) from error
    return module


def _from_name(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        beside = Path(f"{name}.py")
        meant = f"; the file beside you is --plugin {beside}" if beside.is_file() else ""
        if Path(name).is_file():
            meant = "; a plug-in is a Python file (.py) or the name of a module"
        raise ImportError(_broken(name, error) + meant) from error


def _broken(name: str, error: Exception) -> str:
    return f"plug-in {name} cannot be imported: {type(error).__name__}: {error}"


@functools.cache
def load_installed() -> None:
    """Imports the installed plug-ins, once; one that cannot be imported is a warning."""
    for entry in metadata.entry_points(group=GROUP):
        version = "" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
        try:
            importlib.import_module(entry.module)
        except Exception as error:
            warnings.warn(f"{_broken(version or entry.name, error)}; it is left out", stacklevel=2)
            continue
        _loaded[entry.module.partition(".")[0]] = version or entry.module


def _described(module: ModuleType) -> str:
    """What a file notes about a plug-in: name and version, or its file and the hash of it."""
    top = module.__name__.partition(".")[0]
    file = Path(module.__file__ or "")
    if not file.is_file():
        return module.__name__
    for name in metadata.packages_distributions().get(top, []):
        return f"{name} {metadata.version(name)}"
    return f"{file.name}, sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}"


def counts(cls: type) -> bool:
    """Whether a class may be named in files and on the command line."""
    top = cls.__module__.partition(".")[0]
    return top in ("fewstep", "__main__") or top in _loaded


def origin(cls: type) -> str | None:
    """What a class from outside was loaded from; None for one of fewstep's own."""
    top = cls.__module__.partition(".")[0]
    if top == "fewstep":
        return None
    return _loaded.get(top) or _described(sys.modules[cls.__module__])


@contextmanager
def told(made_with: object) -> Iterator[None]:
    """Within it, the error about an unknown kind says which plug-in a file was made with.

    made_with: what the file notes, kind -> plug-in. Anything else is passed over.
    """
    noted = {}
    if isinstance(made_with, Mapping):
        for kind, plugin in made_with.items():
            noted[str(kind)] = in_one_line(plugin, 120)
    token = _made_with.set(noted)
    try:
        yield
    finally:
        _made_with.reset(token)


def remedy(kind: str) -> str:
    """`"; made with my_network.py: give --plugin PATH"`, or nothing where no file has told."""
    if kind not in _made_with.get():
        return ""
    plugin = _made_with.get()[kind].partition(", sha256")[0]
    return f"; made with {plugin}: give --plugin PATH"
