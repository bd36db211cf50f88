"""Classes of diffusers and transformers inside choices of ours: their configuration is an option,
checked against what the installed class takes. Neither library is imported before it is used.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

from annotated_types import Predicate

from fewstep.meant import did_you_mean
from fewstep.text import in_one_line


def is_plain(value: Any) -> bool:
    """Whether it is what JSON gives back as it was: numbers, text, nothing, lists of such."""
    if isinstance(value, list):
        return all(is_plain(one) for one in value)
    return value is None or isinstance(value, bool | int | float | str)


Config = Mapping[str, Annotated[Any, Predicate(is_plain)]]
"""An option that holds the options of a library's class, as its config.json has them."""


def library_class(path: str) -> Any:
    """A class by its library and name, "diffusers.AutoencoderKL". ImportError with the remedy
    where the library is not there.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ImportError(
            f"{path} is not there ({in_one_line(error, 80)}): pip install 'fewstep[text]'"
        ) from None


@functools.cache
def class_options(path: str) -> dict[str, Any]:
    """What the class takes, with its defaults: the keys of its config.json that say what it is."""
    cls = library_class(path)
    if path.startswith("transformers."):  # a dataclass, below one that knows how models are saved
        return {name: getattr(cls, name) for name in inspect.get_annotations(cls)}
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not one.empty}


def completed(config: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The options with the class's defaults. ValueError, in one line, for one that it has not."""
    known = class_options(path)
    for name in config:
        if name not in known:
            raise ValueError(f"{path} has no option {name!r}{did_you_mean(name, list(known))}")
    return {**known, **config}


def own_options(described: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Of a config.json the options of the class, without what else libraries note there."""
    known = class_options(path)
    return {name: value for name, value in described.items() if name in known}


def made(path: str, config: Mapping[str, Any]) -> Any:
    """The object of these options. ValueError, in one line, for what the class refuses."""
    cls = library_class(path)
    try:
        return cls(**config)
    except Exception as error:  # of any kind: libraries check what they are told in many ways
        raise ValueError(f"{path}: {in_one_line(error, 300)}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block diffusers and transformers draw no bars and say errors alone."""
    loggings = [library_class(f"{name}.utils.logging") for name in ("transformers", "diffusers")]
    before = [(one.get_verbosity(), one.is_progress_bar_enabled()) for one in loggings]
    for one in loggings:
        one.set_verbosity_error()
        one.disable_progress_bar()
    try:
        yield
    finally:
        for one, (level, bars) in zip(loggings, before, strict=True):
            one.set_verbosity(level)
            if bars:
                one.enable_progress_bar()
