"""A mode in which what makes the host wait for a device is an error, on PyTorch's device "meta".

Tensors of "meta" have no values, so it stands for a GPU where only the calls matter. What is an
error is what waits on CUDA: reading a value, a copy between host and device that may not go on
later, an operation whose result's shape depends on values.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
READS = {
    aten._local_scalar_dense.default: "a value is read",
    aten.equal.default: "tensors are compared",
    aten.allclose.default: "tensors are compared",
    aten.nonzero.default: "places of true values are counted",
    aten.masked_select.default: "true values are counted",
    aten.repeat_interleave.Tensor: "repeats are added up",
    aten._unique2.default: "values are counted",
    aten.unique_dim.default: "values are counted",
    aten.unique_consecutive.default: "values are counted",
    aten.bincount.default: "values are counted",
}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
INDEXED |= {aten._index_put_impl_.default, aten._unsafe_index.Tensor}


class WaitError(AssertionError):
    """The host would wait for the device here."""


def far(value: Any) -> bool:
    """Whether this is a tensor on the device."""
    return isinstance(value, Tensor) and value.device.type == "meta"


def near(value: Any) -> bool:
    """Whether this is a tensor of the host."""
    return isinstance(value, Tensor) and value.device.type == "cpu"


@contextlib.contextmanager
def no_waits() -> Iterator[None]:
    """WaitError where the host would wait for the device, in a backward pass too."""
    with Calls(), Operations():
        yield


class Operations(TorchDispatchMode):
    """What becomes of Python's calls: PyTorch's operations on tensors."""

    def __torch_dispatch__(
        self, op: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if reason := waits(op, args, given):
            raise WaitError(f"{op}: {reason}")
        return op(*args, **given)


def waits(op: Any, args: Sequence[Any], given: Mapping[str, Any]) -> str | None:
    """Why this operation waits; None where it does not."""
    if op is aten._to_copy.default:
        target = torch.device(given.get("device") or args[0].device).type
        return copies(far(args[0]), target == "meta", given.get("non_blocking", False))
    if op is aten.copy_.default:
        non_blocking = args[2] if len(args) > 2 else given.get("non_blocking", False)
        return copies(far(args[1]), far(args[0]), non_blocking)
    tensors = [value for value in pytree.tree_leaves((args, given)) if isinstance(value, Tensor)]
    if not any(far(tensor) for tensor in tensors):
        return None
    if op in INDEXED:
        return indexes(args)
    if op is aten.where.self and any(near(tensor) for tensor in tensors):
        return "one number of the host is sent"
    return READS.get(op)


def copies(from_far: bool, to_far: bool, non_blocking: bool) -> str | None:
    """Why a copy waits. One to the host always does: its values may be read at once."""
    if from_far and not to_far:
        return "values come to the host"
    if to_far and not from_far and not non_blocking:
        return "values of the host are sent without non_blocking"
    return None


def indexes(args: Sequence[Any]) -> str | None:
    """Why an indexing waits. One number for all true places of a mask needs no count of them."""
    places = [index for index in args[1] if isinstance(index, Tensor)]
    if any(near(place) for place in places):
        return "an index of the host is sent"
    one = len(args) > 2 and args[2].numel() == 1
    if any(place.dtype == torch.bool for place in places) and not one:
        return "true values of a mask are counted"
    return None


class Calls(TorchFunctionMode):
    """What is not seen below Python: how numbers of Python come to the device."""

    def __torch_function__(
        self,
        call: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if reason := sends(call, args, given):
            raise WaitError(f"{call.__name__}: {reason}")
        return call(*args, **given)


def sends(call: Any, args: Sequence[Any], given: Mapping[str, Any]) -> str | None:
    """Why this call waits; None where it does not."""
    if call in (torch.tensor, torch.as_tensor, torch.asarray):
        made = far_device(given.get("device")) and not isinstance(args[0], Tensor)
        return "numbers of Python are sent" if made else None
    if call is Tensor.new_tensor:
        own = far(args[0]) if given.get("device") is None else far_device(given["device"])
        return "numbers of Python are sent" if own and not isinstance(args[1], Tensor) else None
    if call not in (Tensor.__getitem__, Tensor.__setitem__) or not far(args[0]):
        return None
    if lists(args[1]):
        return "an index of Python's is sent"
    number = call is Tensor.__setitem__ and isinstance(args[2], int | float)
    if number and selects_one(args[0], args[1]):
        return "one number is sent to one place"
    return None


def far_device(device: Any) -> bool:
    """Whether this names the device."""
    return device is not None and torch.device(device).type == "meta"


def lists(index: Any) -> bool:
    """Whether numbers in a list are an index, or a part of one."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, list | range) for part in parts)


def selects_one(tensor: Tensor, index: Any) -> bool:
    """Whether whole numbers alone select one element; a slice of them is filled on the device."""
    parts = index if isinstance(index, tuple) else (index,)
    whole = all(isinstance(part, int) and not isinstance(part, bool) for part in parts)
    return whole and len(parts) == tensor.ndim
