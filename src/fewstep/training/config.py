"""Options of the loop."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Lt

from fewstep.choice import Choice, Count, Decay, Natural, NonNegative, Positive
from fewstep.learning.schedules import Constant, Schedule
from fewstep.training.optimizers import AdamW, OptimizerSpec
from fewstep.training.precision import Precision


@dataclass(frozen=True)
class TrainerConfig(Choice):
    """Options of the loop.

    batch: the global batch. micro_batch: rows per pass (0: all), accumulated. optimizers: by
    network, where one wants another than `optimizer`. clip: limit of the gradient's norm (0: none).
    ema: decays of the exported averages; the first is the student. max_skips: steps of any 100 that
    a non-finite loss or gradient may cost. save_every, health_every, sample_every: 0 for never.
    sample_steps: of the grids that sample_every writes, one for each. precision: fp32; bf16, fp16
    (autocast, frozen networks in weights of that type); fp16_teacher (fp32, frozen networks in
    fp16); with fp16 a loss scale, for gradients that pass through fp16 networks. sharding: full
    splits all networks among processes (FSDP2). checkpointing: recomputes activations in the
    backward pass. compile: torch.compile of every network. timeout: seconds after which a silent
    process ends the run.
    """

    steps: Count = 1000
    batch: Count = 128
    micro_batch: Natural = 0
    optimizer: OptimizerSpec = field(default_factory=AdamW)
    optimizers: dict[str, OptimizerSpec] = field(default_factory=dict)
    schedule: Schedule = field(default_factory=Constant)
    clip: NonNegative = 1.0
    ema: tuple[Decay, ...] = (0.999,)
    precision: Precision = "fp32"
    sharding: Literal["none", "full"] = "none"
    checkpointing: bool = False
    compile: bool = False
    seed: Annotated[int, Ge(-(2**63)), Lt(2**63)] = 0
    device: str = "auto"
    save_every: Natural = 500
    keep: Count = 2
    log_every: Count = 50
    health_every: Natural = 100
    sample_every: Natural = 0
    sample_steps: tuple[Count, ...] = (1, 2, 4)
    max_skips: Natural = 10
    timeout: Positive = 600.0

    # What a resumed run may change: the result stays the same up to rounding (or does not depend on
    # it at all).
    free: ClassVar[tuple[str, ...]] = (
        "micro_batch",
        "sharding",
        "checkpointing",
        "compile",
        "timeout",
        "device",
        "save_every",
        "keep",
        "log_every",
        "health_every",
        "sample_every",
        "sample_steps",
        "max_skips",
    )

    def __post_init__(self) -> None:
        if not self.ema:
            raise ValueError("ema needs at least one decay (0 exports the weights as they are)")
        if len({f"{decay:g}" for decay in self.ema}) < len(self.ema):
            raise ValueError(f"ema={self.ema} has two decays of the same name")
        if self.compile and self.sharding != "none":
            raise ValueError(
                "compile does not go with sharding: FSDP2's hooks are not in the compiled network"
            )


def difference(old: Any, new: Any, path: str = "") -> str:
    """The differing leaves of two plain values: `optimizer.lr: 0.001 -> 0.002`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping) and old.get("kind") != new.get("kind"):
        old, new, path = (
            old.get("kind"),
            new.get("kind"),
            f"{path}.kind" if path else "kind",
        )  # all else differs then
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        parts = [
            difference(old.get(k), new.get(k), f"{path}.{k}" if path else str(k))
            for k in dict.fromkeys([*old, *new])
            if old.get(k) != new.get(k)
        ]
        return ", ".join(parts)
    return f"{path + ': ' if path else ''}{old} -> {new}"


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one, else the CPU. ValueError where it
    is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
