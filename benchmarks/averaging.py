"""Seconds per update of ways to average gradients over two processes.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 \\
        benchmarks/averaging.py --repeats 3 --batch 16

An update is the loss of the recipe digits_teacher on this process's half of the batch, forward and
backward, and the averaging; no optimizer. "none" does not average: what the others take beyond it
is their price.

flat        World.sum behind the last micro-batch, as the trainer does it
replicate   torch.distributed._composable.replicate: DDP in place, its buckets leave during the
            backward pass
mesh        FSDP2 on a mesh of (processes, 1): it replicates and shards nothing; the network as one
mesh each   the same, each member of its module lists by itself
full        FSDP2 that shards, as trainer.sharding=full: not the same service, for comparison

Every repeat measures all ways in turn: medians over its updates, then medians over the repeats, and
over their differences to "none". CPU: of both processes together, which a busy machine disturbs
less. --parts: micro-batches per update. That a way's gradients are those of "flat" is checked
first.
"""

import argparse
import os
import time
from collections.abc import Callable
from datetime import date
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._composable.replicate import replicate
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from fewstep.choice import replaced
from fewstep.diffusion.draws import Draws
from fewstep.learning.method import Clock
from fewstep.recipes.digits import digits_teacher
from fewstep.training.processes import World, local, shard, together, whole


def on_mesh(network: nn.Module, world: World, each: bool) -> None:
    """FSDP2 that replicates. each: the members of module lists one by one, then the rest."""
    mesh = init_device_mesh("cpu", (world.size, 1), mesh_dim_names=("replicate", "shard"))
    lists = [inner for inner in network.modules() if each and isinstance(inner, nn.ModuleList)]
    for part in [part for inner in reversed(lists) for part in inner]:
        fully_shard(part, mesh=mesh)
    fully_shard(network, mesh=mesh)


WAYS: dict[str, Callable[[nn.Module, World], Any]] = {
    "none": lambda network, world: None,
    "flat": lambda network, world: None,
    "replicate": lambda network, world: replicate(network),
    "mesh": lambda network, world: on_mesh(network, world, each=False),
    "mesh each": lambda network, world: on_mesh(network, world, each=True),
    "full": lambda network, world: shard(network),
}


class Update:
    """One way's network and its next update."""

    def __init__(self, way: str, world: World, batch: int, parts: int):
        run = digits_teacher()
        dataset = run.data.dataset()
        run = replaced(run, trainer=replaced(run.trainer, batch=batch, device="cpu"))
        ready = run.prepared(dataset)
        self.nets, self.stream = ready.nets, ready.stream
        self.network: Any = self.nets.student.network
        self.size = sum(p.numel() for p in self.network.parameters())
        self.method, self.world, self.batch, self.parts, self.number = (
            run.method,
            world,
            batch,
            parts,
            0,
        )
        self.way = way
        WAYS[way](self.network, world)

    def gradient(self) -> Tensor:
        """All of it, whole and as a mean over the processes."""
        parameters = list(self.network.parameters())
        parts = [whole(local(p.grad), p.grad) for p in parameters if p.grad is not None]
        scale = self.world.size if self.way == "flat" else 1
        return torch.cat([part.flatten() for part in parts]) / scale

    def __call__(self) -> tuple[float, float]:
        """The next update: the seconds of the slower process (all begin together), and the CPU
        seconds of all.
        """
        rows, clock = self.world.rows(self.batch), Clock(self.number, 10**6, self.batch)
        size = -(-len(rows) // self.parts)
        self.network.zero_grad(set_to_none=True)
        dist.barrier()
        began, used = time.perf_counter(), time.process_time()
        for first in range(rows.start, rows.stop, size):
            part = range(first, min(rows.stop, first + size))
            batch = self.stream(self.number, part, Draws(0, part, step=self.number))
            losses = self.method.updates(clock)[0].loss(self.nets, batch, clock)
            (sum(term.sum() for term in losses.terms.values()) / self.batch).backward()  # type: ignore[union-attr]
        if self.way == "flat":
            self.world.sum([p.grad for p in self.network.parameters() if p.grad is not None])
        seconds, cpu = torch.tensor(
            [time.perf_counter() - began, time.process_time() - used], dtype=torch.float64
        )
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        dist.all_reduce(cpu)
        self.number += 1
        return seconds.item(), cpu.item()


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, default=10, help="of each way, per repeat")
    parser.add_argument("--batch", type=int, default=128, help="of both processes together")
    parser.add_argument("--parts", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with together(120.0) as world:
        assert world.size > 1, "start it with torchrun"
        ways: dict[str, Update] = {}
        for way in WAYS:
            ways[way] = Update(way, world, options.batch, options.parts)
            ways[way]()
            ways[way]()
            if way not in ("none", "flat"):
                gap = (ways[way].gradient() - ways["flat"].gradient()).norm() / ways[
                    "flat"
                ].gradient().norm()
                assert gap < 1e-5, f"{way}: its gradient is {gap:.1e} away"
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(options.repeats):
            taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
            for _ in range(options.updates):
                for way, update in ways.items():
                    taken[way].append(update())
            for way, values in taken.items():
                found[way].append((median(v for v, _ in values), median(v for _, v in values)))
        if world.is_leader:
            print(
                f"{ways['none'].size / 1e6:.2f} M parameters, {world.size} processes, batch "
                f"{options.batch}, "
                f"{options.parts} micro-batches, torch {torch.__version__}, {date.today()}, "
                f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
            )
            print(
                "       way  s/update  beyond none     CPU s  beyond none   s/update of the repeats"
            )
            for way, values in found.items():
                columns = [
                    (
                        median(v[i] for v in values),
                        median(v[i] - n[i] for v, n in zip(values, found["none"])),
                    )
                    for i in range(2)
                ]
                numbers = "  ".join(f"{total:8.4f}  {beyond:+11.4f}" for total, beyond in columns)
                print(
                    f"{way:>10}  {numbers}   {' '.join(f'{seconds:.4f}' for seconds, _ in values)}"
                )


if __name__ == "__main__":
    main()
