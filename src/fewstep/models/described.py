"""What the files beside a model's weights say, checked as it is taken."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fewstep.diffusion.guidance import Guidance
from fewstep.errors import option_errors


@contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Within the block what is wrong with the content of model.json is an error that names it."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__} {error}") from None
    except ValueError as error:
        if str(path.parent) in str(error):  # it names a file already
            raise
        raise ValueError(f"{path}: {'; '.join(option_errors(error)) or error}") from None


def guidance_of(plain: dict[str, Any]) -> Guidance:
    """ValueError for a kind that is not known and for what is no number."""
    found = Guidance(**plain)
    if found.kind not in ("doubled", "input", "fixed", "none"):
        raise ValueError(f"guidance of an unknown kind: {found.kind!r}")
    numbers = {name: value for name, value in found._asdict().items() if name != "kind"}
    if (fading := numbers.pop("fading")) is not None:
        full, none = fading
        numbers |= {"fading.full": full, "fading.none": none}
        found = found._replace(fading=(full, none))
    for name, number in numbers.items():
        if type(number) not in (int, float) or not math.isfinite(number):
            raise ValueError(f"guidance.{name}: expected a number, got {number!r}")
    return found


def are_columns(examples: Any) -> bool:
    """Whether they are lists with something in them, by name."""
    columns = examples.values() if isinstance(examples, dict) else [None]
    return all(isinstance(column, list) and column for column in columns)


def clip_of(value: Any) -> float | None:
    """ValueError for what is no positive number, and not nothing."""
    if value is None or (type(value) in (int, float) and math.isfinite(value) and value > 0):
        return value
    raise ValueError(f"clip: expected a positive number, got {str(value)[:80]}")
