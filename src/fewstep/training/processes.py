"""Several processes under torchrun, in place: nothing stands between a method and its networks.

Each process has all networks and its own rows of every batch. Gradients are summed once per update,
behind the last micro-batch, in flat buckets; the loss is divided by the global batch already, so
the sum is one process's gradient. With `sharding` FSDP2 splits parameters, gradients, averages and
optimizer states among the processes. Why not DDP's buckets or `replicate`: docs/architecture.md,
"Several processes".
"""

import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from fewstep.diffusion.denoiser import Denoiser

BUCKET = 1 << 24  # numbers in one all-reduce: 64 MiB of float32
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among those that train together; alone it costs nothing."""

    rank: int = 0
    size: int = 1

    @property
    def is_leader(self) -> bool:
        """Whether this process writes files and speaks for all."""
        return self.rank == 0

    def rows(self, batch: int) -> range:
        """This process's rows of a global batch."""
        return range(batch * self.rank // self.size, batch * (self.rank + 1) // self.size)

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Sums each tensor over the processes, in place."""
        if self.size == 1 or not tensors:
            return
        first = 0
        while first < len(tensors):
            bucket: list[Tensor] = []
            numbers = 0
            while first < len(tensors) and (
                not bucket or numbers + tensors[first].numel() <= BUCKET
            ):
                bucket.append(tensors[first])
                numbers += tensors[first].numel()
                first += 1
            flat = torch.cat([t.reshape(-1) for t in bucket])
            dist.all_reduce(flat)
            parts = flat.split([t.numel() for t in bucket])
            torch._foreach_copy_(bucket, [p.view_as(t) for p, t in zip(parts, bucket)])

    def max(self, value: int) -> int:
        """The largest value of all processes, agreed on the host: no process waits for a device."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def on_leader(self, work: Callable[[], T]) -> T:
        """What `work` gives in the leading process, for all; where it fails there, all end."""
        if self.size == 1:
            return work()
        answer: list[T | None] = [None]
        failure: Exception | None = None
        if self.is_leader:
            try:
                answer[0] = work()
            except Exception as error:
                failure = error
        if self.max(failure is not None):
            raise failure or RuntimeError("the leading process failed")
        dist.broadcast_object_list(answer, src=0)
        return answer[0]  # type: ignore[return-value]

    def broadcast(self, module: nn.Module) -> None:
        """The leading process's weights and buffers, for all."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)


@contextmanager
def together(timeout: float) -> Iterator[World]:
    """Meets the other processes that torchrun started. timeout: seconds after which a silent one
    ends the run (R20).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # Both backends: what is agreed on the host goes by gloo, past the queue of the device.
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=datetime.timedelta(seconds=timeout)
    )
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def shard(module: nn.Module) -> None:
    """FSDP2 on the network: the members of its module lists one by one, then the rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    root = module.network if isinstance(module, Denoiser) else module
    assert isinstance(root, nn.Module)
    mesh = init_device_mesh(next(root.parameters()).device.type, (dist.get_world_size(),))
    for inner in reversed(list(root.modules())):
        if isinstance(inner, nn.ModuleList):
            for part in inner:
                fully_shard(part, mesh=mesh)
    # Also the root lets go of what it gathered, so that behind a pass parameters are what averages
    # and copies expect.
    fully_shard(root, mesh=mesh, reshard_after_forward=True)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, the tensor itself otherwise; shares its storage,
    knows no gradient.
    """
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(part: Tensor, like: Tensor) -> Tensor:
    """The full tensor of the processes' parts, which are laid out as the parameter `like` is; a
    collective call.
    """
    if not isinstance(like, DTensor):
        return part
    laid = DTensor.from_local(
        part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
    return laid.full_tensor()


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """This process's part of a full tensor, laid out as the parameter `like` is."""
    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements).to_local()
