"""What measures read of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.data.bounds import memory_for
from fewstep.data.captions import all_of
from fewstep.data.dataset import Dataset
from fewstep.data.pictures import in_channels
from fewstep.metrics.measure import Measure
from fewstep.models.space import described


def read_as(dataset: Dataset, channels: int, name: str) -> Tensor:
    """Its images in [0, 1], in so many channels."""
    with memory_for(f"{name}, {len(dataset):,} images of {dataset.shape}"):
        return in_channels(dataset.images, channels).float() / 255


def check_pictures(dataset: Dataset) -> None:
    """ValueError where there are none that a model's images could be compared with."""
    if "image" not in dataset.columns:
        raise ValueError(
            f"the data hold no images to compare with, only {described(dataset.columns)}: fewstep "
            "evaluate --reference PICTURES measures a model against those"
        )


def columns_of(measures: Sequence[Measure], dataset: Dataset, channels: int) -> dict[str, Any]:
    """The columns of the reference that measures need or use, as far as the data have them."""
    columns: dict[str, Any] = {}
    for measure in measures:
        for need in (*measure.needs, *measure.uses):
            owner, _, name = need.rpartition(".")
            if not owner or name in columns:
                continue
            if name == "captions" and "caption" in dataset.columns:
                columns[name] = all_of(dataset, torch.arange(len(dataset)))
            elif name not in dataset.columns:
                continue
            elif name == "image":
                columns[name] = read_as(dataset, channels, "the reference")
            else:
                columns[name] = dataset.rows(torch.arange(len(dataset)), [name])[name]
    return columns
