"""Numbers that are not finite (NaN, infinity): they never become images, figures or files."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from fewstep.errors import NotFiniteError


def bad_rows(rows: Tensor) -> Tensor:
    """Which rows hold a number that is not finite, (n,) bool on the CPU."""
    return ~rows.isfinite().reshape(len(rows), -1).all(1).cpu()


def check_images(images: Tensor) -> None:
    """NotFiniteError where numbers of images (n, channels, height, width) are not finite."""
    if bad := int(bad_rows(images).sum()):
        raise NotFiniteError(
            f"{bad} of {len(images)} images hold numbers that are not finite: there is nothing to "
            f"show or to measure"
        )


def bad_tensor(tensors: Mapping[str, Tensor], buffers: Collection[str] = ()) -> str | None:
    """The first of these weights that is not finite; None where all are. Buffers of a network, by
    name, may hold infinity (masks do), but no NaN.
    """
    for name, tensor in tensors.items():
        bad = tensor.isnan() if name in buffers else ~tensor.isfinite()
        if bad.any():
            return name
    return None


def bad_weight(module: nn.Module) -> str | None:
    """The first weight of a module that is not finite; None where all are."""
    return bad_tensor(module.state_dict(), dict(module.named_buffers()))


def check_saved(tensors: Mapping[str, Tensor], buffers: Collection[str] = ()) -> None:
    """NotFiniteError that names the first of them that is not finite (`bad_tensor`)."""
    if name := bad_tensor(tensors, buffers):
        raise NotFiniteError(f"{name} holds numbers that are not finite; such a model is not saved")


def remedy(module: nn.Module, autocast: torch.dtype | None) -> str:
    """What helps where a network's samples are not finite. autocast: the type it computes in."""
    if name := bad_weight(module):
        return f"its {name} is not finite either: it is damaged, or diverged in training"
    if torch.float16 in {autocast, *(p.dtype for p in module.parameters())}:
        return "float16 ends at 65,504: --dtype bf16 or fp32 (Python: model.to(dtype=…)) goes on"
    return (
        "the network's numbers overflow: a lower learning rate helps where it diverged in "
        "training, else another sampler, other steps or less guidance may"
    )
