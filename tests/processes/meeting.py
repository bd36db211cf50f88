"""Checks of what processes say to each other, and of who writes."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.processes.measuring import (
    bits,
    check,
    digits,
    of_weights,
    run,
)
from torch import Tensor

import fewstep.training.processes as processes
from fewstep.contracts.trial import teacher
from fewstep.data.stream import Stream
from fewstep.diffusion.process import VarianceExploding
from fewstep.methods.dmd2 import DMD2
from fewstep.models.adapters import FullCopy
from fewstep.training.config import TrainerConfig
from fewstep.training.processes import World
from fewstep.training.trainer import Trainer


@check
def sums(world: World, folder: Path) -> dict[str, Any]:
    """World.sum in buckets of 10 numbers: tensors larger than one, empty, 0-d, strided and of
    several types.
    """
    shapes = [(), (3,), (0,), (2, 3), (25,), (1,), (4, 2, 2), (7,), ()]
    kinds = {
        str(d)[6:]: [d]
        for d in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64)
    }
    found, whole, reduce = {}, processes.BUCKET, dist.all_reduce
    for name, dtypes in {**kinds, "mixed": [torch.float32, torch.float64]}.items():
        expected, tensors = [], []
        for i, shape in enumerate(shapes):
            base = (
                (torch.arange(math.prod(shape)) + 10 * i).reshape(shape).to(dtypes[i % len(dtypes)])
            )
            tensors.append(base * (1 + world.rank))
            expected.append(base * 3)
        base = torch.arange(24).reshape(4, 6).to(dtypes[0])
        tensors += [(base * (1 + world.rank))[:, ::2], (base * (1 + world.rank)).t()]
        expected += [(base * 3)[:, ::2], (base * 3).t()]
        calls: list[int] = []

        def counted(tensor: Tensor, *rest: Any, calls: list[int] = calls) -> Any:
            calls.append(tensor.numel())
            return reduce(tensor, *rest)

        addresses = [t.data_ptr() for t in tensors]
        processes.BUCKET, dist.all_reduce = 10, counted  # type: ignore[assignment]
        try:
            world.sum(tensors)
        finally:
            processes.BUCKET, dist.all_reduce = whole, reduce
        found[name] = {
            "buckets": calls,
            "sizes": [t.numel() for t in tensors],
            "equal": [torch.equal(t, e) and t.dtype == e.dtype for t, e in zip(tensors, expected)],
            "in place": addresses == [t.data_ptr() for t in tensors],
        }
    world.sum([])
    return found


@check
def agreements(world: World, folder: Path) -> dict[str, Any]:
    """World.on_leader with a result and with a failure, World.max, World.rows."""
    asked: list[int] = []

    def work() -> dict[str, Any]:
        asked.append(world.rank)
        return {"path": folder, "rank": world.rank}

    def fails() -> None:
        asked.append(world.rank)
        raise OSError(28, "No space left on device", "x")

    given = world.on_leader(work)
    try:
        world.on_leader(fails)
        failure = ""
    except (OSError, RuntimeError) as error:
        failure = type(error).__name__
    return {
        "given": given["rank"],
        "path": given["path"] == folder,
        "asked": asked,
        "failure": failure,
        "behind it": world.on_leader(lambda: 7),
        "max": [
            world.max(n) for n in (world.rank, 5 - world.rank, -3 - world.rank, 2**40 + world.rank)
        ],
        "rows": [list(world.rows(n)) for n in (16, 15, 2)],
        "leader": world.is_leader,
    }


@check
def spread(world: World, folder: Path) -> dict[str, Any]:
    """The second process begins with other weights in every network, the
    frozen teacher among them.
    """
    found = {}
    for sharding in ("none", "full"):
        model, method = teacher(VarianceExploding()), DMD2()
        torch.manual_seed(world.rank)  # another head
        nets = method.build_nets(model, FullCopy().clones(model.denoiser))
        before = {}
        for field in dataclasses.fields(nets):
            for key, parameter in getattr(nets, field.name).named_parameters():
                parameter.data += 0.1 * world.rank
                before[f"{field.name}/{key}"] = parameter.detach().clone()
        stream = Stream(digits(), model.codec, model.conditioner, 0, 16)
        trainer = Trainer(
            method,
            nets,
            stream,
            TrainerConfig(sharding=sharding, device="cpu", batch=16),
            None,
            world,
        )
        after = {
            f"{name}/{k}": processes.whole(processes.local(v), v)
            for name, module in trainer.state.modules.items()
            for k, v in module.named_parameters()
        }
        nets_seen = sorted(trainer.state.modules)
        found[sharding] = {
            "before": bits({"": before}),
            "after": bits({"": after}),
            "nets": nets_seen,
        }
    return found


WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[list[str]]:
    """What this process creates, opens for writing, renames or removes below the folder."""
    heard: list[str] = []
    active = [True]

    def hook(event: str, arguments: Any) -> None:
        if not active[0] or event not in (
            "open",
            "os.mkdir",
            "os.rename",
            "os.remove",
            "os.rmdir",
            "shutil.rmtree",
        ):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITES):
            return
        if str(arguments[0]).startswith(str(folder)):
            heard.append(f"{event} {Path(str(arguments[0])).name}")

    sys.addaudithook(hook)  # stays until the process ends
    try:
        yield heard
    finally:
        active[0] = False


@check
def written(world: World, folder: Path) -> dict[str, Any]:
    """The files of a run with six saves, sharded and not."""
    found = {}
    for sharding in ("none", "full"):
        home = folder / sharding
        with writing(home) as heard:
            run(of_weights(world, home, save_every=1, sharding=sharding))
        files = sorted(p.name for p in (home / "checkpoints").iterdir())
        found[sharding] = {"writes": len(heard), "first": heard[:3], "checkpoints": files}
    return found
