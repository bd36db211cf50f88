"""What a network is for in a method, said beside it where the method lists its networks.

@dataclass
class Nets:
    student: Denoiser = trained(exported=True)
    target: Denoiser | None = moved()     # None where the options make it absent
    teacher: Denoiser = frozen()
"""

import dataclasses
from typing import Any, Literal, NamedTuple

from torch import nn

Purpose = Literal["trained", "moved", "frozen"]


class Roles(NamedTuple):
    """Names of the networks that are there: those with an optimizer (`trains`), those that
    `after_step` writes (`moves`), those that are saved, each with its averages (`exports`), and
    frozen ones that compute as those that train (`twins`).
    """

    trains: tuple[str, ...]
    moves: tuple[str, ...]
    exports: tuple[str, ...]
    twins: tuple[str, ...] = ()


def trained(exported: bool = False) -> Any:
    """A network with an optimizer. exported: it is saved, with its averages."""
    return _role("trained", exported)


def moved() -> Any:
    """A network without an optimizer that the method's `after_step` writes."""
    return _role("moved", False)


def frozen(twin: bool = False) -> Any:
    """A network that never changes. twin: it computes as those that train do, in every precision,
    for a loss that takes the difference of two answers: rounding is then the same in both.
    """
    return _role("frozen", False, twin)


def _role(purpose: Purpose, exported: bool, twin: bool = False) -> Any:
    return dataclasses.field(metadata={"purpose": purpose, "exported": exported, "twin": twin})


def networks(nets: Any) -> dict[str, nn.Module]:
    """The networks of a method by name, without those that are None and without what a method notes
    beside them.
    """
    present = {}
    for field in dataclasses.fields(nets):
        network = getattr(nets, field.name)
        if isinstance(network, nn.Module):
            present[field.name] = network
    return present


def roles_of(nets: Any) -> Roles:
    """The roles of the networks that are there, in the order of their fields."""
    present = networks(nets)
    fields = [field for field in dataclasses.fields(nets) if field.name in present]
    for field in fields:
        assert "purpose" in field.metadata, f"{field.name}: trained(), moved() or frozen()?"
    return Roles(
        trains=tuple(f.name for f in fields if f.metadata["purpose"] == "trained"),
        moves=tuple(f.name for f in fields if f.metadata["purpose"] == "moved"),
        exports=tuple(f.name for f in fields if f.metadata["exported"]),
        twins=tuple(f.name for f in fields if f.metadata["twin"]),
    )
