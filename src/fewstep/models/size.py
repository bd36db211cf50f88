"""How large a module is, known before memory is taken for it: what a file or an option claims is
held against what is there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration
from torch.overrides import TorchFunctionMode

MOST_TENSORS = 20_000  # the largest networks of images have two thousand
MOST_NUMBERS = 64_000_000  # of one sample: an image of 4000×4000 in four channels


class _Bare(TorchFunctionMode):
    """Leaves out `normal_`, which on the device "meta" imports torch's compiler, for seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is Tensor.normal_ else func(*args, **(kwargs or {}))


@contextmanager
def at_most(tensors: int, numbers: float = math.inf) -> Iterator[None]:
    """Within the block modules may register so many parameters and buffers, with so many numbers in
    all; ValueError at the first beyond.
    """
    seen = [0, 0]

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        if tensor is None:
            return
        seen[0] += 1
        seen[1] += tensor.numel()
        if seen[0] > tensors or seen[1] > numbers:
            before = seen[1] - tensor.numel()
            raise ValueError(f"it has more than {seen[0] - 1} tensors, {before:,} numbers")

    hooks = [
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def without_memory() -> Iterator[None]:
    """Within the block modules are made without memory for their weights, and nothing is drawn."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"), _Bare():
        yield


def shapes_of(build: Callable[[], Any], most: int = MOST_TENSORS) -> dict[str, list[int]]:
    """The shapes, by name, of the weights of the module that `build` would make; it takes no
    memory. ValueError where it would have more than `most`, or sizes that no tensor has.
    """
    with without_memory(), at_most(most):
        try:
            module = build()
        except (RuntimeError, TypeError, OverflowError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(f"no network has such sizes: {reason}") from None
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}


def check_memory(shapes: dict[str, list[int]], what: str) -> None:
    """ValueError where weights of these shapes do not fit into this machine's memory."""
    needed, there = 4 * numbers_in(shapes), _memory()
    if needed > there:
        raise ValueError(
            f"{what} has {needed // 4:,} parameters, {needed / 2**30:,.0f} GiB; this machine has "
            f"{there / 2**30:,.0f}"
        )


def _memory() -> float:
    """The bytes of this machine's memory; infinite where nobody tells."""
    if os.name != "posix":
        return math.inf
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def numbers_in(shapes: dict[str, list[int]]) -> int:
    """How many numbers weights of these shapes are."""
    return sum(math.prod(shape) for shape in shapes.values())


def parameters_in(module: nn.Module) -> int:
    """How many parameters it has."""
    return sum(parameter.numel() for parameter in module.parameters())
