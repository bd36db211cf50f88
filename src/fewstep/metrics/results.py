"""`Result`: one row of a comparison, as data. Tables, reports and comparisons are made of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from fewstep.errors import option_errors
from fewstep.files import read_json
from fewstep.metrics.measure import Scale
from fewstep.metrics.protocol import Protocol

Role = Literal["", "teacher", "student", "data"]


@dataclass(frozen=True)
class Result:
    """What was measured of a model, or of images that lie somewhere.

    values: by kind of measure, in the order of tables, but for what the protocol calls undefined.
    solver: of the ODE, or the name of a sampler
    that is none; None for images. steps, evaluations: for one image, 0 for images. role: of the row
    in its comparison. headline: whether it is the row of its role that a reader should look at.
    """

    model: str
    values: Mapping[str, float]
    protocol: Protocol
    solver: str | None = None
    steps: int = 0
    evaluations: int = 0
    images_per_second: float | None = None
    role: Role = ""
    headline: bool = False

    @property
    def cost(self) -> str:
        """Its evaluations in words."""
        return f"{self.evaluations} evaluation{'s' if self.evaluations != 1 else ''}"

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return values | {"values": dict(self.values), "protocol": self.protocol.plain()}

    @staticmethod
    def of_plain(plain: Any) -> Result:
        """What `plain` wrote. ValueError where it is none, damaged, or has keys unknown here."""
        from pydantic import TypeAdapter

        if not isinstance(plain, Mapping) or not isinstance(plain.get("protocol"), Mapping):
            raise ValueError("it has no protocol")
        unknown = set(plain) - {one.name for one in fields(Result)}
        if unknown:
            raise ValueError(f"it has {', '.join(sorted(unknown))}, unknown to this fewstep")
        protocol = Protocol.of_plain(plain["protocol"])
        result = TypeAdapter(Result).validate_python({**plain, "protocol": protocol})
        measured = [*result.values, *protocol.undefined]
        if not result.values or sorted(measured) != sorted(protocol.measures):
            raise ValueError("its values are not those of the measures in its protocol")
        return result


def read_result(path: Path) -> Result:
    """The result of a file that `fewstep evaluate --out` wrote. FileNotFoundError or ValueError
    that name the file.
    """
    plain = read_json(path)
    try:
        return Result.of_plain(plain)
    except ValueError as error:
        reason = "; ".join(option_errors(error)) or str(error)
        raise ValueError(f"{path} is no result of fewstep evaluate --out: {reason}") from None


def scales_of(results: Sequence[Result]) -> dict[str, Scale]:
    """How the values of each measure that any row has are read, in the order of tables."""
    found: dict[str, Scale] = {}
    for result in results:
        for kind, scale in result.protocol.measures.items():
            found.setdefault(kind, scale)
    return found


def best_of(results: Sequence[Result]) -> Result:
    """The best by the measure that stands first in all of them."""
    kind, scale = next(iter(scales_of(results).items()))
    return min(results, key=lambda result: scale.rank(result.values[kind]))
