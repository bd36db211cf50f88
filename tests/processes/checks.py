"""What two processes do, measured in one start of torchrun; test_processes.py judges the numbers.

    torchrun --standalone --nproc-per-node 2 -m tests.processes.checks FOLDER [CHECK …]

Both processes carry out every check, in the same order; FOLDER/values-RANK.json holds what each
measured, by check. The first exception ends all: FOLDER/failed-RANK.txt then says where.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from tests.cli.conftest import LOOP, TEACHER
from tests.test_contracts import METHODS, teacher_of
from tests.training import tiny
from tests.training.tiny import Rhythm, StopError, stop_at
from torch import Tensor

import fewstep.training.processes as processes
from fewstep.choice import replaced
from fewstep.cli import main as cli
from fewstep.cli.configure import configured
from fewstep.data.digits import Digits
from fewstep.data.stream import Stream
from fewstep.errors import DivergedError
from fewstep.files import load_tensors
from fewstep.learning.method import Method
from fewstep.methods.dmd2 import DMD2
from fewstep.models.adapters import FullCopy
from fewstep.models.dit import Dit
from fewstep.models.source import Fresh
from fewstep.run import Run, distil
from fewstep.training.checkpoint import Checkpoints
from fewstep.training.config import TrainerConfig
from fewstep.training.log import read_log
from fewstep.training.optimizers import AdamW, Sgd
from fewstep.training.processes import World, together
from fewstep.training.seen import Observer, Seen
from fewstep.training.trainer import Trainer

CHECKS: dict[str, Callable[[World, Path], dict[str, Any]]] = {}
COMMANDS: dict[
    str, Callable[[World, Path], dict[str, Any]]
] = {}  # behind the checks: they meet by themselves
ALONE = World()
DESCENT = Sgd(lr=0.05)
SHORTER = {"dmd2": {"fake_steps": 2}}  # the same in fewer updates
FULL = {"sharding": "full"}
Groups = dict[str, dict[str, Tensor]]


def check(
    function: Callable[[World, Path], dict[str, Any]],
) -> Callable[[World, Path], dict[str, Any]]:
    CHECKS[function.__name__] = function
    return function


@functools.cache
def digits() -> Any:
    return Digits(limit=64).dataset()


def tiny_dit() -> Any:
    """A teacher that is a transformer, with weights everywhere."""
    model = Fresh(network=Dit(width=16, depth=2, heads=2, mlp_ratio=2)).load(digits().space, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.denoiser.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def of_digits(
    method: Method, world: World, folder: Path, model: Any = None, **chosen: Any
) -> Trainer:
    """Three steps of 16 digits with the tiny teacher of the contracts, without dropout."""
    options: dict[str, Any] = {
        "steps": 3,
        "batch": 16,
        "optimizer": DESCENT,
        "ema": (0.5,),
        "device": "cpu",
    }
    config = TrainerConfig(**{**options, "save_every": 0, "health_every": 0, **chosen})
    run = Run(Digits(), method, dropout=0.0, trainer=config)
    model = model or teacher_of(digits())
    return run.prepared(digits(), model=model, folder=folder, world=world).trainer


def of_weights(
    world: World, folder: Path, data: Callable[[Stream], Any] = lambda s: s, **chosen: Any
) -> Trainer:
    """Six steps of 8 rows with networks of 58 weights and two optimizers; data: stands between the
    stream and it.
    """
    method, config = Rhythm(dropout=0.0), tiny.config(**{"steps": 6, **chosen})
    return Trainer(
        method, method.nets(), data(tiny.data(config.seed, config.batch)), config, folder, world
    )


class Done(NamedTuple):
    """A run that ended: what it saved at its end, its log, the trainer."""

    saved: Groups
    lines: list[dict[str, float]]
    trainer: Trainer


def run(trainer: Trainer, *observers: Observer, say: Any = print) -> Done:
    trainer.fit(*observers, say=say)
    assert trainer.folder is not None
    folder, steps = trainer.folder.path, trainer.config.steps
    if (
        trainer.state.sharded
    ):  # what is on the disk, for gathering it here costs a message per tensor
        saved = Checkpoints(folder / "checkpoints", writes=False).load(steps).tensors
    else:  # what this process holds
        saved = {
            group: {k: v.clone() for k, v in tensors.items()}
            for group, tensors in trainer.state.saved().items()
        }
    return Done(saved, read_log(folder / "log.jsonl"), trainer)


@functools.cache
def alone(make: Callable[..., Trainer], folder: Path, **chosen: Any) -> tuple[Done, Groups]:
    """The same run in one process, and what it began with; every process makes its own, side by
    side.
    """
    trainer = make(ALONE, folder.with_name(f"{folder.name}-alone-{os.environ['RANK']}"), **chosen)
    began = {
        group: {k: v.clone() for k, v in tensors.items()}
        for group, tensors in trainer.state.saved().items()
    }
    return run(trainer), began


@functools.cache
def by_name(name: str) -> Callable[..., Trainer]:
    """The maker of runs of a method with its defaults."""
    return functools.partial(of_digits, replaced(METHODS[name](), **SHORTER.get(name, {})))


DISTILLATION = by_name("consistency_distillation")


def furthest(a: Groups, b: Groups, *groups: str) -> float:
    """The largest difference of two states, over the groups given (default: weights and
    averages).
    """
    worst = 0.0
    for group in groups or ("nets", "ema"):
        assert a[group].keys() == b[group].keys()
        for key, value in a[group].items():
            difference = (value.double() - b[group][key].double()).abs().max().item()
            worst = max(worst, difference if math.isfinite(difference) else math.inf)
    return worst


def of_logs(a: list[dict[str, float]], b: list[dict[str, float]]) -> float:
    """The largest difference of two logs, relative above 1, over all numbers; infinite where a
    number is missing.
    """
    if [list(line) for line in a] != [list(line) for line in b]:
        return math.inf
    pairs = [(x[k], y[k]) for x, y in zip(a, b) for k in x]
    return max(
        (abs(x - y) / max(1.0, abs(x)) for x, y in pairs if not (math.isnan(x) and math.isnan(y))),
        default=0.0,
    )


def bits(groups: Mapping[str, Mapping[str, Tensor]]) -> str:
    found = hashlib.sha256()
    for group in sorted(groups):
        for key in sorted(groups[group]):
            value = groups[group][key].contiguous()
            found.update(
                f"{group}/{key} {value.dtype} {tuple(value.shape)}".encode()
                + value.numpy().tobytes()
            )
    return found.hexdigest()[:16]


def compared(one: tuple[Done, Groups], two: Done) -> dict[str, Any]:
    done, began = one
    return {
        "lines": len(two.lines),
        "losses": of_logs(done.lines, two.lines),
        "weights": furthest(done.saved, two.saved),
        "moved": furthest(done.saved, began, "nets"),
        "bits": bits(two.saved),
        "norms": [line[k] for line in two.lines for k in line if k.startswith("norm.")],
    }


def is_key_bias(name: str, value: Tensor) -> Tensor:
    """Where attention's key biases lie: the middle third of each qkv.bias.

    Their gradient is zero in exact arithmetic: q·(k + b) adds the same number q·b to the scores of
    a query with all keys, and the softmax over the keys does not see it. What is left is rounding,
    and AdamW, whose steps know the sign and hardly the size, makes steps of it.
    test_only_key_biases_have_no_gradient shows that no other weight is so: GroupNorm takes away the
    mean of the biases in front of it over each of its groups, and ours have two channels.
    """
    place = torch.zeros(value.shape, dtype=torch.bool)
    if name.endswith("qkv.bias"):
        place[len(value) // 3 : 2 * len(value) // 3] = True
    return place


def same(name: str, world: World, folder: Path, **chosen: Any) -> dict[str, Any]:
    """One process and two, plain descent."""
    return compared(
        alone(by_name(name), Path(folder.parent.parent, f"one-{name}", "run")),
        run(by_name(name)(world, folder, **chosen)),
    )


def same_adam(name: str, world: World, folder: Path) -> dict[str, Any]:
    """One process and two, AdamW: its key biases apart, and how many of the other weights lie
    apart.
    """
    make, adam = by_name(name), AdamW(lr=1e-3)
    one, two = alone(make, folder, optimizer=adam), run(make(world, folder, optimizer=adam))
    other, keys = [], []
    for key, value in one[0].saved["nets"].items():
        gap, place = (value - two.saved["nets"][key]).abs(), is_key_bias(key, value)
        other.append(gap[~place])
        keys.append(gap[place])
    others = torch.cat(other)
    far = {"weights": others.max().item(), "keys": torch.cat(keys).max().item()}
    return (
        compared(one, two) | far | {"beyond": int((others > 1e-5).sum()), "count": others.numel()}
    )


for _name in METHODS:
    CHECKS[f"descent-{_name}"] = functools.partial(same, _name)
    CHECKS[f"sharded-{_name}"] = functools.partial(same, _name, **FULL)
    CHECKS[f"adam-{_name}"] = functools.partial(same_adam, _name)


@check
def clipped(world: World, folder: Path) -> dict[str, Any]:
    """A limit far below the norms; `norms` are those before."""
    chosen = {"clip": 1e-3, "optimizer": Sgd(lr=10.0)}
    one = alone(of_weights, folder, **chosen)
    return {
        sharding: compared(
            one, run(of_weights(world, folder / sharding, sharding=sharding, **chosen))
        )
        for sharding in ("none", "full")
    }


@check
def odd(world: World, folder: Path) -> dict[str, Any]:
    """15 rows, whole and in micro-batches of 4: 7 and 8 rows, that is 4 + 3 and 4 + 4."""
    chosen = {"batch": 15, "optimizer": DESCENT}
    found = {}
    for micro in (0, 4):
        two = run(of_weights(world, folder / str(micro), micro_batch=micro, **chosen))
        found[str(micro)] = compared(alone(of_weights, folder, **chosen), two)
        found[str(micro)] |= {"rows": len(two.trainer.step.rows), "micro": two.trainer.step.micro}
    return found


@check
def refusals(world: World, folder: Path) -> dict[str, Any]:
    """What is said of batches that cannot be split; nothing where they are taken."""
    found = {}
    for name, chosen in {
        "too small": {"batch": 1},
        "odd and sharded": {"batch": 15, **FULL},
    }.items():
        try:
            of_weights(world, folder / name, **chosen)
            found[name] = ""
        except ValueError as error:
            found[name] = str(error)
    return found


@check
def transformer(world: World, folder: Path) -> dict[str, Any]:
    """A network of another family, its blocks split one by one, with activations recomputed."""
    one = alone(DISTILLATION, folder, model=tiny_dit())
    two = run(DISTILLATION(world, folder, model=tiny_dit(), checkpointing=True, **FULL))
    held, whole = (
        sum(p.numel() for p in d.trainer.state.leaves["student"].values()) for d in (two, one[0])
    )
    return compared(one, two) | {"held": held / whole}


@check
def precisions(world: World, folder: Path) -> dict[str, Any]:
    """Other arithmetic, accumulated: 2 × 8 rows in parts of 4 against 16 rows in parts of 4."""
    found = {}
    kinds = {"bf16": ("bf16", "none"), "bf16 sharded": ("bf16", "full"), "fp16": ("fp16", "none")}
    for name, (precision, sharding) in kinds.items():
        chosen = {"precision": precision, "micro_batch": 4, "steps": 2}
        one = alone(DISTILLATION, folder / precision, **chosen)
        two = run(DISTILLATION(world, folder / name, sharding=sharding, **chosen))
        exact = alone(DISTILLATION, folder / "fp32", steps=2)
        found[name] = compared(one, two) | {"from fp32": furthest(exact[0].saved, two.saved)}
    return found


@check
def accumulated(world: World, folder: Path) -> dict[str, Any]:
    """8 rows per process in parts of 3, 3, 2."""
    one = alone(of_weights, folder, batch=16, optimizer=DESCENT)
    return {
        sharding: compared(
            one,
            run(
                of_weights(
                    world,
                    folder / sharding,
                    batch=16,
                    micro_batch=3,
                    optimizer=DESCENT,
                    sharding=sharding,
                )
            ),
        )
        for sharding in ("none", "full")
    }


@dataclasses.dataclass
class Altered:
    """Data that something happens to: `alter` gets the number of a batch, its rows, and x0."""

    inner: Stream
    alter: Callable[[int, range, Tensor], None]

    @property
    def fingerprint(self) -> str:
        return self.inner.fingerprint

    def ids(self, number: int, rows: range) -> Tensor:
        return self.inner.ids(number, rows)

    def __call__(self, number: int, rows: range, draws: Any) -> Any:
        batch = self.inner(number, rows, draws)
        self.alter(number, rows, batch.data)
        return batch


def spoilt(*numbers: int) -> Callable[[Stream], Altered]:
    """Row 5 of these batches is not a number: a row of the second process alone."""

    def alter(number: int, rows: range, x0: Tensor) -> None:
        if number in numbers and 5 in rows:
            x0[rows.index(5)] = math.nan

    return lambda stream: Altered(stream, alter)


@check
def not_a_number(world: World, folder: Path) -> dict[str, Any]:
    """A spoilt row in batch 5, the student's of the second step; bits behind every step."""
    found = {}
    for sharding in ("none", "full"):
        for optimizer in (DESCENT, AdamW(lr=1e-2)):
            name = f"{sharding} {type(optimizer).__name__}"
            trainer = of_weights(
                world,
                folder / name.replace(" ", "-"),
                spoilt(5),
                sharding=sharding,
                optimizer=optimizer,
            )
            seen = [_kept(trainer)]

            def look(_: Seen, trainer: Trainer = trainer, seen: list[Any] = seen) -> None:
                seen.append(_kept(trainer))

            done = run(trainer, look)
            found[name] = {
                "student": [student for student, _ in seen],
                "fake": [fake for _, fake in seen],
                "finite": all(
                    v.isfinite().all().item()
                    for group in done.saved.values()
                    for v in group.values()
                ),
                "skipped": [line["skipped"] for line in done.lines],
                "flags": trainer.skips.flags.nonzero()[:, 0].tolist(),
            }
    return found


def _kept(trainer: Trainer) -> tuple[str, str]:
    """Bits of the student with its optimizer, and of the other network with its own."""
    saved = trainer.state.saved()
    return tuple(  # type: ignore[return-value]
        bits(
            {
                g: {k: v for k, v in saved[g].items() if k.startswith(name)}
                for g in ("nets", "optim")
            }
        )
        for name in ("student/", "fake/")
    )


@check
def diverged(world: World, folder: Path) -> dict[str, Any]:
    """Spoilt rows of one process without end: both processes stop, one writes why."""
    trainer = of_weights(world, folder, spoilt(*range(5, 18)), max_skips=1, log_every=1)
    said = ""
    try:
        trainer.fit()
    except DivergedError as error:
        said = str(error)
    dist.barrier()
    dump = json.loads((folder / "diverged.json").read_text())
    status = json.loads((folder / "status.json").read_text())
    return {
        "said": said,
        "steps": dump["steps"],
        "ids": [len(b) for b in dump["batches"].values()],
        "status": status,
    }


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
        model, method = teacher_of(digits()), DMD2()
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


CUT = 3
# eps far above the rounding of the gradients: then no step is a matter of a gradient's sign.
STEADY = AdamW(lr=1e-2, eps=1e-4, weight_decay=0.1)


def halves(
    world: World, folder: Path, first: dict[str, Any], then: dict[str, Any], **both: Any
) -> dict[str, Any]:
    """A run that is cut behind its step 3 of 6 and goes on in another setting; alone: in the
    leading process only.
    """
    heard: list[str] = []
    done = None
    for part, setting in enumerate((first, then)):
        options = {**both, **setting}
        here = ALONE if options.pop("alone", False) else world
        if here is world or world.is_leader:
            trainer = of_weights(here, folder, save_every=CUT, **options)
            if part:
                done = run(trainer, say=heard.append)
            else:
                with contextlib.suppress(StopError):
                    trainer.fit(stop_at(CUT))
                    raise AssertionError("it did not stop")
        dist.barrier()
    if done is None:
        return {}
    one = alone(of_weights, folder, **both)
    found = compared(one, done) | {
        "optimizers": furthest(one[0].saved, done.saved, "optim"),
        "said": heard,
    }
    if first == then:  # as if it had not been cut
        straight = run(of_weights(world, folder.with_name("straight"), **both, **then))
        found |= {"straight": bits(straight.saved), "same log": straight.lines == done.lines}
    return found | {"batches": done.trainer.batches, "micro": done.trainer.step.micro}


@check
def resumed(world: World, folder: Path) -> dict[str, Any]:
    """From one number of processes, or way of sharing, to another, against the whole run in one
    process.
    """
    one: dict[str, Any] = {"alone": True}
    settings: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "2 to 2": ({}, {}),
        "sharded to sharded": (FULL, FULL),
        "1 to 2": (one, {}),
        "2 to 1": ({}, one),
        "sharded to not": (FULL, {}),
        "not to sharded": ({}, FULL),
        "sharded to 1": (FULL, one),
        "1 to sharded": (one, FULL),
    }
    found = {}
    for name, (first, then) in settings.items():
        home = folder / name.replace(" ", "-") / "run"
        found[name] = halves(world, home, first, then, optimizer=STEADY)
    return found


@check
def resumed_odd(world: World, folder: Path) -> dict[str, Any]:
    """Two processes to two, with 15 rows: 7 and 8."""
    return halves(world, folder, {}, {}, batch=15, optimizer=STEADY)


@check
def resumed_network(world: World, folder: Path) -> dict[str, Any]:
    """A real network, sharded, cut and resumed unsharded."""
    for part, setting in enumerate((FULL, {})):
        trainer = DISTILLATION(
            world, folder, save_every=1, steps=2, optimizer=AdamW(lr=1e-3, eps=1e-5), **setting
        )
        if part:
            two = run(trainer, say=lambda line: None)
        else:
            with contextlib.suppress(StopError):
                trainer.fit(stop_at(1))
    return compared(alone(DISTILLATION, folder, steps=2, optimizer=AdamW(lr=1e-3, eps=1e-5)), two)


@check
def exported(world: World, folder: Path) -> dict[str, Any]:
    """The exported network of a short run, and that its making leaves the run as it is."""
    found: dict[str, Any] = {}
    nets = {}
    for sharding in ("none", "full"):
        done = run(
            DISTILLATION(world, folder / sharding, sharding=sharding, ema=(0.5, 0.9), steps=1)
        )
        made = [done.trainer.state.exported("student", decay) for decay in (0.5, 0.9)]
        nets[sharding] = {str(i): dict(net.state_dict()) for i, net in enumerate(made)}
        again = done.trainer.state.saved()
        found[sharding] = {
            "bits": bits(nets[sharding]),
            "plain": all(
                type(p.data) is Tensor and not p.requires_grad
                for net in made
                for p in net.parameters()
            ),
            "untouched": bits(done.saved) == bits(again),
            "training": made[0].training,
            "saved": all(
                torch.equal(v, done.saved["ema"][f"student/{d}/{k}"])
                for net, d in zip(made, ("0.5", "0.9"))
                for k, v in net.named_parameters()
            ),
        }
    found["apart"] = furthest(nets["none"], nets["full"], "0", "1")
    return found


@check
def out_of_memory(world: World, folder: Path) -> dict[str, Any]:
    """The second process cannot take more than 2 rows at once: both go down to that, and the batch
    stays whole.
    """

    def alter(number: int, rows: range, x0: Tensor) -> None:
        if not world.is_leader and number == 4 and len(rows) > 2:
            raise MemoryError("can't allocate memory")

    chosen = {"batch": 16, "optimizer": DESCENT}
    two = run(of_weights(world, folder, lambda stream: Altered(stream, alter), **chosen))
    return compared(alone(of_weights, folder, **chosen), two) | {"micro": two.trainer.step.micro}


def command(
    function: Callable[[World, Path], dict[str, Any]],
) -> Callable[[World, Path], dict[str, Any]]:
    COMMANDS[function.__name__] = function
    return function


STUDENT = (
    "train",
    "digits_cd",
    "data.limit=64",
    *LOOP[1:],
    "trainer.steps=6",
    "trainer.health_every=3",
)
STUDENT += ("trainer.log_every=1", "trainer.schedule.warmup=0", "trainer.optimizer.eps=1.0e-5")


def fewstep(*words: str) -> tuple[int, str]:
    """The command line in this process: its exit code, and all that it printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            cli.main(words)
        except SystemExit as ended:
            return int(ended.code or 0), said.getvalue()
    raise AssertionError("the command line did not end")


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


@command
def by_command(world: World, folder: Path) -> dict[str, Any]:
    """`fewstep train digits_cd` in two processes, whole and from the middle of a run of one,
    against one process.
    """
    os.chdir(folder)
    teacher = f"teacher={folder}/runs/tiny"
    if world.is_leader:
        with environment(WORLD_SIZE="1"):
            assert fewstep(*TEACHER, "name=tiny")[0] == 0
            assert fewstep(*STUDENT, teacher, "name=one")[0] == 0
            run, half = configured("digits_cd", [*STUDENT[2:], teacher, "name=half"])
            with contextlib.suppress(StopError):
                distil(run, half, observers=[stop_at(CUT)])
            shutil.copytree(half, "runs/middle")  # as it was when the second process came
    ended = {name: fewstep(*STUDENT, teacher, f"name={name}") for name in ("two", "half")}
    waits: list[float] = []
    with mock.patch.object(
        cli, "patience", lambda error, ask=cli.patience: waits.append(ask(error)) or 0.0
    ):
        ended["refused"] = fewstep(*STUDENT, teacher, "name=two", "trainer.steps=7")
    found: dict[str, Any] = {
        name: {"code": code, "said": said.splitlines()} for name, (code, said) in ended.items()
    }
    found["refused"]["waits"] = waits
    if not world.is_leader:
        return found
    found["middle"] = len(read_log(Path("runs/middle/log.jsonl")))
    home = Path("runs/one")
    for name in ("two", "half"):
        other = Path("runs", name)
        here, there = (load_tensors(p / "student" / "model.safetensors") for p in (home, other))
        found[name] |= {
            "log": of_logs(read_log(home / "log.jsonl"), read_log(other / "log.jsonl")),
            "lines": len(read_log(other / "log.jsonl")),
            "student": furthest({"": here}, {"": there}, ""),
            "status": json.loads((other / "status.json").read_text()),
            "report": (other / "report.html").is_file(),
        }
    return found


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def main() -> None:
    home, names = Path(sys.argv[1]), sys.argv[2:] or [*CHECKS, *COMMANDS]
    torch.set_num_threads(1)
    values: dict[str, Any] = {}

    def measured(name: str, work: Callable[[World, Path], dict[str, Any]], world: World) -> None:
        began = time.monotonic()
        folder = home / name / "run"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            values[name] = work(world, folder) | {"seconds": round(time.monotonic() - began, 2)}
        except BaseException:
            (home / f"failed-{world.rank}.txt").write_text(f"{name}\n{traceback.format_exc()}")
            raise
        (home / f"values-{world.rank}.json").write_text(json.dumps(values, indent=1))

    with together(60.0) as world:
        for name in names:
            if name in CHECKS:
                measured(name, CHECKS[name], world)
        ports = world.on_leader(lambda: [free_port() for _ in range(8)])
    import fewstep.report.run_report as report

    report.curves = lambda *_, **__: "<svg></svg>"  # type: ignore[assignment]  # drawing takes longer than training
    meet = processes.together

    @contextlib.contextmanager
    def elsewhere(timeout: float) -> Iterator[World]:
        """A process can meet the others once per store; this gives each
        command a store of its own.
        """
        if os.environ["WORLD_SIZE"] == "1":
            yield ALONE
            return
        with (
            environment(MASTER_PORT=ports.pop(), TORCHELASTIC_USE_AGENT_STORE="False"),
            meet(timeout) as world,
        ):
            yield world

    import fewstep.run as runs

    runs.together = elsewhere
    for name in names:
        if name in COMMANDS:
            measured(name, COMMANDS[name], world)


if __name__ == "__main__":
    main()
