"""Checks that a run of two processes is that of one."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.processes.measuring import (
    CHECKS,
    DESCENT,
    DISTILLATION,
    FULL,
    alone,
    bits,
    check,
    compared,
    furthest,
    of_weights,
    run,
    same,
    same_adam,
    tiny_dit,
)
from tests.shared_weights import LowRanks
from tests.test_contracts import METHODS
from torch import Tensor

from fewstep.data.stream import Stream
from fewstep.errors import DivergedError
from fewstep.training.optimizers import AdamW, Sgd
from fewstep.training.processes import World
from fewstep.training.seen import Seen
from fewstep.training.trainer import Trainer

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
            "untouched": bits({group: done.saved[group] for group in again}) == bits(again),
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


@check
def shared(world: World, folder: Path) -> dict[str, Any]:
    """Additions on one base, in two processes; sharded they are refused."""
    chosen: dict[str, Any] = {"adaptation": LowRanks(), "optimizer": Sgd(lr=0.5)}
    one = alone(DISTILLATION, folder, **chosen)
    two = run(DISTILLATION(world, folder, **chosen))
    nets = two.trainer.nets
    places = {p.data_ptr() for p in nets.teacher.parameters()}
    try:
        DISTILLATION(world, folder / "sharded", **chosen, **FULL)
        refused = ""
    except ValueError as error:
        refused = str(error)
    return compared(one, two) | {
        "once": places < {p.data_ptr() for p in nets.student.parameters()},
        "saved": sorted({key.rpartition(".")[2] for key in two.saved["nets"]}),
        "refused": refused,
    }
