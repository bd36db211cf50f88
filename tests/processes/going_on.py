"""Checks of runs that were cut and go on, in the same setting or another."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tests.processes.measuring import (
    ALONE,
    DISTILLATION,
    FULL,
    alone,
    bits,
    check,
    compared,
    furthest,
    of_weights,
    run,
)
from tests.training.tiny import StopError, stop_at

from fewstep.training.optimizers import AdamW
from fewstep.training.processes import World

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
        "said": [line for line in heard if not line.startswith("goes on behind step ")],
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
