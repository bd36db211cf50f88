"""Options of the loop."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Le

from fewstep.choice import MOST, Choice, Count, Decay, Natural, NonNegative, Positive, Seed
from fewstep.learning.schedules import Constant, Schedule
from fewstep.training.optimizers import AdamW, OptimizerSpec
from fewstep.training.precision import Precision
from fewstep.training.signals import Extra


@dataclass(frozen=True)
class TrainerConfig(Choice):
    """Options of the loop."""

    steps: Annotated[int, Ge(1), Le(MOST)] = 1000
    """Steps of the run; each does all of the method's updates."""
    batch: Count = 128
    """Images of one update, over all processes together."""
    micro_batch: Natural = 0
    """Images in one pass, accumulated to the batch; 0: all at once."""
    optimizer: OptimizerSpec = field(default_factory=AdamW)
    """The optimizer of every network in training, with its rate."""
    optimizers: dict[str, OptimizerSpec] = field(default_factory=dict)
    """Other optimizers for single networks, by the network's name."""
    schedule: Schedule = field(default_factory=Constant)
    """The factor of the learning rate over the run."""
    clip: NonNegative = 1.0
    """The largest norm of the gradients of one update; 0: no limit."""
    ema: tuple[Decay, ...] = (0.999,)
    """Decays of the averages of the weights that are saved; the first is the student."""
    ema_warmup: bool = True
    """Averages begin short: behind k steps of a phase they keep at most k/(k + 9) of themselves, so
    nothing of its first weights stays in them. false: all of the decay from the first step."""
    precision: Precision = "fp32"
    """Arithmetic of the networks. bf16, fp16: autocast, frozen networks in such weights.
    fp16_teacher: fp32, frozen networks in fp16. With fp16 a loss scale."""
    sharding: Literal["none", "full"] = "none"
    """full splits all networks among the processes (FSDP2)."""
    checkpointing: bool = False
    """Computes activations again in the backward pass: less memory, more time."""
    compile: bool = False
    """Compiles every network with torch.compile."""
    seed: Seed = 0
    """Seed of the new weights, the batches, the noise and the dropout."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps …; auto is cuda where there is one."""
    threads: Natural = 0
    """Threads of a CPU; 0: as OMP_NUM_THREADS says, else those with which a first pass is fastest.
    Another number is another rounding."""
    save_every: Natural = 500
    """Steps between checkpoints; 0: none before the end."""
    keep: Count = 2
    """Newest checkpoints that stay; at least two do."""
    keep_every: Natural = 0
    """Checkpoints of multiples of this step stay for good; 0: none."""
    keep_best: str = ""
    """A number of the log, as health.distance: the checkpoint with its lowest value stays too."""
    log_every: Count = 50
    """Steps between lines of the log."""
    health_every: Natural = 100
    """Steps between measurements of the averaged networks on held-out images; 0: none."""
    sample_every: Natural = 0
    """Steps between grids of images in samples/; 0: none."""
    sample_steps: tuple[Count, ...] = (1, 2, 4)
    """Steps of the grids that sample_every writes, one grid for each number."""
    max_skips: Natural = 10
    """Steps of any 100 that may be left out for a loss or gradient that is not finite."""
    spikes: Literal["tell", "roll_back"] = "tell"
    """Where a loss or gradient norm jumps: tell says it; roll_back also goes back to the newest
    checkpoint and on with other batches, three times at most."""
    timeout: Positive = 600.0
    """Seconds of silence after which another process counts as lost."""
    stop_signals: tuple[Extra, ...] = ()
    """Signals beside SIGINT, SIGTERM and SIGHUP that stop the run behind a step, with a checkpoint;
    what a scheduler sends before its limit: SIGUSR1, SIGUSR2."""
    tensorboard: bool = False
    """Also writes the numbers of the log for TensorBoard, which must be installed."""
    wandb: bool = False
    """Also logs them to Weights & Biases, which must be installed; WANDB_MODE=offline keeps them
    in the run's folder."""

    # What a resumed run may change: the result stays the same up to rounding (or does not depend on
    # it at all).
    may_change: ClassVar[tuple[str, ...]] = (
        "micro_batch",
        "sharding",
        "checkpointing",
        "compile",
        "timeout",
        "device",
        "threads",
        "save_every",
        "keep",
        "keep_every",
        "keep_best",
        "log_every",
        "health_every",
        "sample_every",
        "sample_steps",
        "max_skips",
        "spikes",
        "stop_signals",
        "tensorboard",
        "wandb",
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
        torch.zeros(1, device=name).item()  # "meta" makes tensors and holds none
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
