"""What the name of a model stands for: a folder or a file, a shipped model, one of the hub."""

import functools
import importlib.resources
from pathlib import Path

from fewstep.models.hub import downloaded, is_name
from fewstep.text import place


@functools.cache
def shipped() -> dict[str, Path]:
    """The models that come with the package, by name."""
    root = Path(str(importlib.resources.files("fewstep") / "weights"))
    found = {}
    for path in sorted(root.iterdir()):
        ours, pipeline = path / "model.json", path / "model_index.json"
        if ours.is_file() or pipeline.is_file():
            found[path.name] = path
    return found


def shipped_folder(name: str | Path) -> Path:
    """The folder of a shipped model. FileNotFoundError with the names that there are."""
    if str(name) not in shipped():
        raise FileNotFoundError(_absent(name))
    return shipped()[str(name)]


def found(source: str | Path) -> Path:
    """The file or folder of a model: what lies there, a shipped model of that name, or one of the
    hub ("owner/name"). FileNotFoundError where there is none.
    """
    path = place(source)
    if path.exists() or not is_name(str(source)):
        return path if path.exists() else shipped_folder(source)
    try:
        return downloaded(str(source))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{_absent(source)}; {error}") from None


def folder_of(source: str | Path) -> Path:
    """Where model.json lies, of the name of a shipped model, a run's folder or a model's."""
    folder = found(source)
    return folder / "student" if (folder / "student" / "model.json").is_file() else folder


def _absent(name: str | Path) -> str:
    return f"no model or run {str(name)!r}; shipped models: {', '.join(shipped())}"
