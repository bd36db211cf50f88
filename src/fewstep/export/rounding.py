"""Exports in fewer digits: the model is rounded first, so that what is compared is what is
written.
"""

import torch
from torch import Tensor, nn

from fewstep.models.bundle import DiffusionModel


def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest number of that type, in the type it had. ValueError where one is too large for
    it.
    """
    found = tensor.to(dtype).to(tensor.dtype)
    if not found.isfinite().all():
        raise ValueError(
            f"weights up to {tensor.abs().max():.2g} are too large for fp16: take bf16"
        )
    return found


@torch.no_grad()
def round_model(model: DiffusionModel, dtype: torch.dtype) -> None:
    """Rounds all weights of a model, in place."""
    for module in (model.denoiser, model.codec, model.conditioner):
        for parameter in module.parameters():
            parameter.copy_(rounded(parameter, dtype))


def store(module: nn.Module, dtype: torch.dtype) -> None:
    """Changes the type of the parameters, as they are saved: libraries' own `to` warns of it."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
