"""Checks that want a GPU, for the report that benchmarks/gpu.py writes. All run without TF32.

Every method of the package trains a tiny U-Net on digits through `distil`, the way users take; what
it did is read from the run's log and checkpoints. A check gives `passed`, the measured `value` and
the `limit` that it is held against.
"""

import contextlib
import functools
import math
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_figures import (
    CUDA,
    Task,
    compiler,
    forget_memory,
    memory_of,
    passes,
    recorded,
    summed,
    tf32,
    waits_noted,
)
from step import DEVICE
from torch import Tensor

from fewstep.choice import replaced
from fewstep.data.digits import Digits
from fewstep.diffusion.samplers import Ode, Renoise
from fewstep.files import load_tensors
from fewstep.learning.method import Method
from fewstep.methods.diffusion import Diffusion
from fewstep.models.folder import load
from fewstep.models.source import Fresh, Saved
from fewstep.models.unet import UNet
from fewstep.run import Run, distil
from fewstep.training.config import TrainerConfig
from fewstep.training.log import read_log
from fewstep.training.optimizers import AdamW, Sgd
from fewstep.training.seen import Observer, Seen

TINY = UNet(channels=8, multipliers=(1, 1), blocks=1, attention=(2,), head_channels=8, groups=4)
NEVER = 10**6
PRECISIONS = ("fp32", "bf16", "fp16")
TRIED = 16  # steps, for one to be taken: a loss scale may cost the first ones of fp16
LOSS_LIMIT = 1e-3  # of the loss itself
SAMPLE_LIMIT = 1e-3  # of images in [0, 1]
COMPILED_LIMIT = 1e-3  # of losses and gradient norms
MEMORY_LIMIT = 1e-4  # of weights behind two steps of plain descent
CAP_STEP = 0.85  # of the memory that was tried before
COMPILED = ("diffusion", "consistency_distillation")


class Enough(Exception):  # noqa: N818
    """Ends a run from an observer, behind a step."""


@functools.cache
def kinds() -> dict[str, type[Method]]:
    """The methods that the package offers, by name."""
    found = Method.kinds()
    return {k: cls for k, cls in found.items() if cls.__module__.startswith("fewstep.methods.")}


def run_of(method: Method, teacher: Any, rows: int, steps: int, **options: Any) -> Run:
    """A run of so many steps on a few digits, every step in the log. options: of the trainer."""
    fixed: dict[str, Any] = {"steps": steps, "batch": rows, "optimizer": AdamW(lr=1e-3)}
    fixed |= {"log_every": 1, "save_every": 0, "health_every": 0, "device": DEVICE.type}
    config = TrainerConfig(**{**fixed, **options})
    return Run(Digits(limit=64), method, teacher, trainer=config)


def trained(run: Run, folder: Path, *observers: Observer) -> None:
    """Carries the run out, silently."""
    distil(run, folder, observers=observers, say=lambda line: None)


def end_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a run's newest checkpoint: weights, averages, states of optimizers."""
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    found = {}
    for path in sorted(newest.glob("*.safetensors")):
        for key, value in load_tensors(path).items():
            found[f"{path.stem}/{key}"] = value
    return found


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> tuple[int, float]:
    """How many tensors differ in a bit, and the largest difference of two numbers."""
    assert a.keys() == b.keys(), "other tensors"
    differ, most = 0, 0.0
    for key, value in a.items():
        if not torch.equal(value, b[key]):
            differ += 1
            most = max(most, (value.double() - b[key].double()).abs().max().item())
    return differ, most


def losses_of(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a log's line that the method gave."""
    own = ("step", "skipped", "rate")
    return {k: v for k, v in line.items() if k not in own and not k.startswith(("norm.", "health"))}


def off(a: dict[str, float], b: dict[str, float]) -> float:
    """The largest relative difference of two lines of numbers."""
    assert a.keys() == b.keys(), f"{sorted(a)} against {sorted(b)}"
    return max(abs(a[k] - b[k]) / max(abs(b[k]), 1e-6) for k in b)


class Checks:
    """All checks, on networks and runs in one folder. dry: small, and what only a GPU has is made
    up: memory that runs out, a compiler.
    """

    def __init__(self, folder: Path, dry: bool):
        self.folder, self.dry = folder, dry
        self.rows = 4 if dry else 16

    @functools.cached_property
    def teacher(self) -> Saved:
        """A tiny teacher behind a few steps on the CPU: a new one is zero in its last layers."""
        run = run_of(Diffusion(), Fresh(network=TINY), 16, 20, device="cpu")
        trained(run, self.folder / "teacher")
        return Saved(str(self.folder / "teacher"))

    def new(self) -> Path:
        """A folder for one more run."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def run(self, kind: str, steps: int, **options: Any) -> Run:
        """A run of the method with its defaults, from the tiny teacher."""
        return run_of(kinds()[kind](), self.teacher, self.rows, steps, **options)

    @functools.cache  # noqa: B019
    def log(self, kind: str, precision: str, device: str) -> list[dict[str, Any]]:
        """The log of a run up to the first step that was not skipped."""
        run = self.run(kind, TRIED, precision=precision, device=device, max_skips=TRIED)

        def look(seen: Seen) -> None:
            if seen.lines and not seen.lines[-1]["skipped"]:
                raise Enough

        folder = self.new()
        with contextlib.suppress(Enough):
            trained(run, folder, look)
        return read_log(folder / "log.jsonl")

    def step(self, kind: str, precision: str) -> dict[str, Any]:
        """Finite losses, and a step that was taken. A method may refuse a precision by its name."""
        try:
            lines = self.log(kind, precision, DEVICE.type)
        except ValueError as error:
            if precision not in str(error):
                raise
            return {"passed": True, "value": {"refused": str(error)}, "limit": "finite"}
        finite = all(math.isfinite(v) for line in lines for v in losses_of(line).values())
        value = {"losses": losses_of(lines[-1]), "skipped": len(lines) - 1}
        taken = not lines[-1]["skipped"]
        return {"passed": finite and taken, "value": value, "limit": "finite"}

    def loss(self, kind: str) -> dict[str, Any]:
        """The first step's losses in fp32 are the CPU's."""
        here, there = (self.log(kind, "fp32", d)[0] for d in (DEVICE.type, "cpu"))
        value = off(losses_of(here), losses_of(there))
        return {"passed": value <= LOSS_LIMIT, "value": value, "limit": LOSS_LIMIT}

    def resume(self, kind: str) -> dict[str, Any]:
        """A run that stopped half-way ends with the bits of one that did not, dropout included;
        with the first of the settings of arithmetic that is enough.
        """
        tried: dict[str, Any] = {}
        for name, setting in DETERMINISM.items():
            with setting():
                differ, most = self.resumed(kind)
            tried[name] = {"tensors that differ": differ, "by": most}
            if not differ:
                return {"passed": True, "value": {"enough": name, "tried": tried}, "limit": 0}
        return {"passed": False, "value": {"enough": None, "tried": tried}, "limit": 0}

    def resumed(self, kind: str) -> tuple[int, float]:
        """How far a resumed run's end is from that of a straight one."""
        half = 2 if self.dry else 3
        run = replaced(self.run(kind, 2 * half, save_every=half), dropout=0.1)

        def look(seen: Seen) -> None:
            if seen.done == half:
                raise Enough

        straight, cut = self.new(), self.new()
        trained(run, straight)
        with contextlib.suppress(Enough):
            trained(run, cut, look)
        trained(run, cut)
        return apart(end_of(straight), end_of(cut))

    def waits(self, kind: str) -> dict[str, Any]:
        """No wait of the host for the device in two warm steps, by PyTorch's own account; and what
        the profiler counts in two others.
        """
        noted = self.within(kind, waits_noted)
        seen = summed(self.within(kind, recorded))
        value = {"steps": 2, "waits": noted.total(), "places": dict(noted)}
        value |= {"copies": seen["copies"], "profiler": seen["waits"]}
        return {"passed": not noted, "value": value, "limit": 0}

    def within(self, kind: str, opened: Callable[[], Any]) -> Any:
        """Steps 3 and 4 of a run, in a context of their own; what that gives."""
        stack = contextlib.ExitStack()
        given = []

        def look(seen: Seen) -> None:
            if seen.done == 2:
                given.append(stack.enter_context(opened()))
            elif seen.done == 4:
                stack.close()
                raise Enough

        run = self.run(kind, 40, log_every=NEVER)
        with stack, contextlib.suppress(Enough):
            trained(run, self.new(), look)
        return given[0]

    def sampling(self, name: str) -> dict[str, Any]:
        """Images of the CPU, with TF32 for comparison."""
        found = {}
        for sampler in (Ode(steps=18), Renoise(steps=2)):
            source = "digits_teacher" if name == "digits_teacher" else self.teacher.path
            here, there = load(source).to(DEVICE), load(source)
            expected = there.generate(num=self.rows, sampler=sampler)
            for setting in (False, True):
                with tf32(setting):
                    images = here.generate(num=self.rows, sampler=sampler)
                key = f"{type(sampler).__name__}{', TF32' if setting else ''}"
                found[key] = (images - expected).abs().max().item()
        plain = max(v for k, v in found.items() if "TF32" not in k)
        return {"passed": plain <= SAMPLE_LIMIT, "value": found, "limit": SAMPLE_LIMIT}

    def memory(self) -> dict[str, Any]:
        """Where the device's memory does not hold the batch, the run goes on in smaller passes and
        ends where one that was told that size does, and one with memory enough.
        """
        batch = 8 if self.dry else 4096
        whole, _, peak = self.descent(batch, 0)
        # The peak is no measure of what the batch needs: a convolution that does not get the
        # workspace of the fastest algorithm takes another one. So the memory shrinks until it runs
        # out; of half the batch it still holds the passes then.
        caps: list[float] = [peak]
        tried = [batch]
        while tried[-1] == batch:
            assert len(caps) < 20, f"{caps[-1] / 2**20:.0f} MiB still hold {batch} rows"
            caps.append(CAP_STEP * caps[-1])
            with memory_of(int(caps[-1]), batch // 2):
                capped, tried, _ = self.descent(batch, 0)
        told, _, _ = self.descent(batch, tried[-1])
        value: dict[str, Any] = {"passes": list(dict.fromkeys(tried)), "made up": not CUDA}
        value |= {"caps": [round(cap) for cap in caps]}
        value |= {"to told": apart(capped, told)[1], "to whole": apart(capped, whole)[1]}
        near = max(value["to told"], value["to whole"]) <= MEMORY_LIMIT
        return {"passed": near and tried[-1] < batch, "value": value, "limit": MEMORY_LIMIT}

    def descent(self, batch: int, micro: int) -> tuple[dict[str, Tensor], list[int], int]:
        """Two steps of plain descent of the shipped teacher: its end, the rows of its passes, the
        peak of the memory that PyTorch held.
        """
        chosen = {"micro_batch": micro, "optimizer": Sgd(lr=0.1)}
        run = run_of(Diffusion(), Saved("digits_teacher"), batch, 2, **chosen)
        run = replaced(run, dropout=0.0)
        forget_memory()
        folder = self.new()
        with passes(training=True) as rows:
            trained(run, folder)
        # Not the norms of gradients that it remembers: they are of the size of sums.
        end = {k: v for k, v in end_of(folder).items() if not k.startswith("spikes/")}
        return end, rows, torch.cuda.max_memory_reserved() if CUDA else 0

    def compiled(self, kind: str) -> dict[str, Any]:
        """Losses and gradient norms of three steps are those without torch.compile."""
        lines = []
        for compiles in (False, True):
            folder = self.new()
            run = self.run(kind, 3, optimizer=Sgd(lr=1e-2), compile=compiles)
            with compiler() as backend:
                trained(run, folder)
            lines.append(read_log(folder / "log.jsonl"))
        assert len(lines[0]) == len(lines[1]) == 3, "lines are missing in a log"
        worst = max(off(b, a) for a, b in zip(*lines))
        value = {"off": worst, "compiler": backend}
        return {"passed": worst <= COMPILED_LIMIT, "value": value, "limit": COMPILED_LIMIT}

    def tasks(self) -> list[Task]:
        """All of them, the cheap and telling ones first."""
        names = list(kinds())
        some = names[:3] if self.dry else names
        found: list[tuple[str, float, Callable[[], dict[str, Any]]]] = []
        for precision in PRECISIONS:
            found += [(f"step.{precision}.{k}", 5, partial(self.step, k, precision)) for k in names]
        found += [(f"loss.{k}", 3, partial(self.loss, k)) for k in names]
        for name in ("digits_teacher", "tiny_unet"):
            found.append((f"sampling.{name}", 5, partial(self.sampling, name)))
        found.append(("memory.halving", 15, self.memory))
        found += [(f"waits.{k}", 5, partial(self.waits, k)) for k in some]
        found += [(f"resume.{k}", 5, partial(self.resume, k)) for k in some]
        slow = COMPILED[:1] if self.dry else COMPILED
        found += [(f"compile.{k}", 45, partial(self.compiled, k)) for k in slow]
        return [Task(name, seconds, tf32(False)(work)) for name, seconds, work in found]


@contextlib.contextmanager
def cudnn_deterministic() -> Iterator[None]:
    """Convolutions by algorithms that give the same bits each time."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


@contextlib.contextmanager
def all_deterministic() -> Iterator[None]:
    """Every operation that has such an algorithm."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with cudnn_deterministic():
            yield
    finally:
        torch.use_deterministic_algorithms(False)


DETERMINISM: dict[str, Callable[[], Any]] = {
    "nothing": contextlib.nullcontext,
    "torch.backends.cudnn.deterministic": cudnn_deterministic,
    "torch.use_deterministic_algorithms": all_deterministic,
}
