"""Conditioners: what a person says, or a row of data holds (a class label, a caption), to the
`Cond` that a network reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewstep.choice import Choice, Count
from fewstep.diffusion.conditioning import Cond
from fewstep.models.space import Classes, Column, Space, described


class Conditioner(Choice, ABC):
    """The options of a conditioner; `build` makes the module, with its weights.

    reads: the columns that it understands, any one of which is enough; the first that a row has is
    used (("embedding", "caption"): a caption is embedded only where no embedding was stored).
    """

    folder: ClassVar[str | None] = "fewstep.models"
    reads: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def build(self) -> ConditionerModule:
        """The module. Weights that are not part of the options are loaded by whoever saved them."""

    def unfit(self, data: Space) -> str | None:
        """Why it cannot condition on rows of this data; None where it can."""
        if self.reads and not set(self.reads) & set(data.columns):
            wanted = " or ".join(self.reads)
            return f"it reads {wanted}, the data has {described(data.columns)}"
        return None


class ConditionerModule(nn.Module, ABC):
    """A conditioner with its weights, which are frozen and move with the model.

    columns: of the condition that it makes; a network is built for them. null: the network knows
    "no condition". A module without parameters or buffers is saved by its options alone.
    """

    spec: Conditioner
    columns: Mapping[str, Column]
    null: bool

    @abstractmethod
    def forward(self, asked: Mapping[str, Any]) -> Cond:
        """The condition of a batch, on this module's device; each null value is ONE row.

        asked: named columns of equal length, of which it reads what it knows. ValueError for what
        it cannot serve.
        """

    def check(self, asked: Mapping[str, Any]) -> None:
        """ValueError for what it cannot serve, seen without the work of conditioning."""
        reads = self.spec.reads
        if reads and not set(reads) & set(asked):
            raise ValueError(f"this model needs {' or '.join(f'{name}s' for name in reads)}")

    def truncated(self, captions: Sequence[str]) -> int:
        """Of how many captions it cannot read the end."""
        return 0

    def examples(self, first: int, num: int) -> dict[str, Any]:
        """What to ask for where nobody says: entries first … first + num - 1, balanced."""
        return {}


@dataclass(frozen=True)
class Unconditional(Conditioner):
    """No condition."""

    def build(self) -> ConditionerModule:
        return UnconditionalModule(self)


class UnconditionalModule(ConditionerModule):
    """Reads nothing."""

    def __init__(self, spec: Unconditional):
        super().__init__()
        self.spec, self.columns, self.null = spec, {}, False

    def forward(self, asked: Mapping[str, Any]) -> Cond:
        return Cond()


@dataclass(frozen=True)
class Labels(Conditioner):
    """Class labels."""

    reads: ClassVar[tuple[str, ...]] = ("label",)

    classes: Count = 10
    """Labels are 0 … classes - 1."""
    null: bool = True
    """Whether one class more means "any", which guidance needs."""

    def build(self) -> ConditionerModule:
        return LabelsModule(self)

    def unfit(self, data: Space) -> str | None:
        if data.classes != self.classes:
            return f"it has {self.classes} classes, the data has {data.classes}"
        return None


class LabelsModule(ConditionerModule):
    """Labels as they are, (batch,) int64; an entry None asks for "any", where that is known."""

    def __init__(self, spec: Labels):
        super().__init__()
        self.spec, self.null = spec, spec.null
        self.classes = spec.classes
        self.columns = {"label": Classes(spec.classes, spec.null)}

    def forward(self, asked: Mapping[str, Any]) -> Cond:
        labels = self.numbers(asked["label"])
        null = {"label": labels.new_full((1,), self.classes)} if self.null else {}
        return Cond({"label": labels}, null)

    def check(self, asked: Mapping[str, Any]) -> None:
        if "label" not in asked:
            raise ValueError("this model needs class labels")
        column = asked["label"]
        if not isinstance(column, Tensor):
            column = [label for label in column if label is not None]
        labels = self.numbers(column)
        if len(labels) < len(asked["label"]) and not self.null:
            raise ValueError("this model knows no image without a label")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise ValueError(
                f"labels must lie in 0 … {self.classes - 1}, got {int(labels.min())} … "
                f"{int(labels.max())}"
            )

    def numbers(self, column: Any) -> Tensor:
        """Labels as whole numbers; None, no label, is the class behind the last."""
        if isinstance(column, Tensor):  # of a device, too, which nothing may wait for
            if column.is_floating_point():
                raise ValueError(f"labels are whole numbers, got a tensor of {column.dtype}")
            return column.long()
        found = [self.classes if label is None else _whole(label) for label in column]
        return torch.tensor(found, dtype=torch.long)

    def examples(self, first: int, num: int) -> dict[str, Any]:
        return {"label": torch.arange(first, first + num) % self.classes}


def _whole(label: Any) -> int:
    """ValueError for a label that is no whole number."""
    number = label.item() if isinstance(label, Tensor) else label
    if int(number) != number:
        raise ValueError(f"labels are whole numbers, got {number!r}")
    return int(number)


def rows_of(asked: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
    """Entries start … stop - 1 of each column."""
    return {name: column[start:stop] for name, column in asked.items()}


def length_of(asked: Mapping[str, Sequence[Any]]) -> int:
    """The common length of columns. ValueError where they differ."""
    lengths = {name: len(column) for name, column in asked.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{count} of {name}" for name, count in lengths.items())
        raise ValueError(f"columns of different lengths: {told}")
    return next(iter(lengths.values()), 0)
