"""Arithmetic by name, and the loss scale that fp16 needs."""

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fewstep.diffusion.denoiser import Denoiser
from fewstep.models.adapters import around, borrowed, tensors_of

Precision = Literal["fp32", "bf16", "fp16", "fp16_teacher"]
# autocast of the networks that train or move, weights of the frozen ones
MODES: dict[str, tuple[torch.dtype | None, torch.dtype | None]] = {
    "fp32": (None, None),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "fp16": (torch.float16, torch.float16),
    "fp16_teacher": (None, torch.float16),
}


def in_precision(
    module: nn.Module, precision: Precision, kept: bool, shared: bool = False, twin: bool = False
) -> nn.Module:
    """The network in this arithmetic, the one that was handed in or another denoiser of it.

    kept: it trains or moves, so its weights stay in fp32. A frozen one is cast, in a copy, where
    the mode has another type for it. shared: others share its weights, which are what they are
    (`on_cast_base`), and it computes under autocast. twin: it computes as those that train.
    """
    active, frozen = MODES[precision]
    if not isinstance(module, Denoiser):
        return module
    if kept:
        module.autocast = active
    elif twin:
        module = around(module.network, module)
        module.autocast = active
    elif frozen is not None:
        if shared:
            module = around(module.network, module)
        else:
            module = copy.deepcopy(module)
            module.network.to(frozen)
        module.autocast = frozen
    return module


def on_cast_base(networks: Mapping[str, nn.Module], precision: Precision) -> dict[str, nn.Module]:
    """The networks; those that share weights, in copies around one cast copy of what they share,
    where the mode has a type for networks that train.

    So the base of low-rank additions is held in 16 bits, and the additions stay as they are. With
    fp16_teacher the base is the student's too, which computes in fp32.
    """
    active = MODES[precision][0]
    if active is None:
        return dict(networks)
    cast: dict[int, Any] = {}
    for network in networks.values():
        for tensor in borrowed(network):
            if tensor.is_floating_point() and id(tensor) not in cast:
                made = tensor.detach().to(active)
                parameter = isinstance(tensor, nn.Parameter)
                cast[id(tensor)] = nn.Parameter(made, requires_grad=False) if parameter else made
    found = {}
    for name, network in networks.items():
        shares = any(id(tensor) in cast for tensor in tensors_of(network).values())
        found[name] = copy.deepcopy(network, dict(cast)) if shares else network
    return found


class LossScale:
    """Keeps small fp16 gradients from vanishing: halved where they overflow, doubled after
    `patience` good updates.

    torch.amp.GradScaler's rule, with our own finite check, which all processes share and which
    waits for no device.
    """

    patience = 2000

    def __init__(self, device: torch.device):
        self.scale = torch.full((), 65536.0, device=device)
        self.good = torch.zeros((), device=device)

    def note(self, bad: Tensor) -> None:
        """One update more, with or without an overflow."""
        grown = self.good + 1 >= self.patience
        self.scale = torch.where(
            bad, self.scale * 0.5, torch.where(grown, self.scale * 2, self.scale)
        ).clamp(max=2.0**127)
        self.good = torch.where(bad | grown, torch.zeros_like(self.good), self.good + 1)
