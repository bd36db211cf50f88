"""Speed and memory on one device: figures of the report that benchmarks/gpu.py writes.

Timed figures are medians of `REPEATS` blocks of steps, each behind a synchronisation, after warm-up
steps. fp32 runs with TF32 here. FLOPs are those that PyTorch's counter finds in one step without
torch.compile; utilisation is FLOPs per second over the device's dense peak in that arithmetic.
"""

import contextlib
import gc
import statistics
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import lora
import step
import torch
from step import DEVICE, Work
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from fewstep.cli.plan import beside, rehearsal
from fewstep.diffusion.samplers import Ode, Renoise, Sampler
from fewstep.models.network import ConditionedModule
from fewstep.models.space import image_space
from fewstep.training.plan import by_role

CUDA = DEVICE.type == "cuda"
REPEATS = 5
MOST_STEPS = 10  # in such a block
PAST = "called a synchronizing CUDA operation"  # PyTorch's words for a wait
MATMUL = 8192  # side of the square matrices whose product measures the peak
SAMPLERS: dict[str, Sampler] = {
    "1 evaluation": Renoise(steps=1),
    "2 evaluations": Renoise(steps=2),
    "Heun-18": Ode(steps=18),
}


class Task(NamedTuple):
    """One entry of a section. seconds: that it may take, at most, as far as is known."""

    name: str
    seconds: float
    work: Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Scale:
    """How large the figures are.

    small: the network of 8×8 instead of that of 32×32. first, later: steps that are measured with
    little and with much time left. compiled: (step, precision) with torch.compile at the middle
    batch. lora_in: precisions of a LoRA's step on Stable Diffusion 1.5, of `lora_batch` pictures of
    `lora_side` pixels. block_s: seconds between two synchronisations, about. quality_steps: of the
    recipe (0: its own). images: for a distance.
    """

    small: bool = False
    batches: tuple[int, ...] = (16, 64, 128, 256, 512)
    first: tuple[str, ...] = ("edm", "cd")
    later: tuple[str, ...] = ("ect", "forward", "bare", "progressive", "dmd2")
    compiled: tuple[tuple[str, str], ...] = (("edm", "bf16"), ("cd", "bf16"))
    lora_in: tuple[str, ...] = ("fp16", "bf16")
    lora_batch: int = 4
    lora_side: int = 512
    sampled: tuple[int, ...] = (16, 256)
    matmul: int = MATMUL
    repeats: int = REPEATS
    block_s: float = 0.2
    quality_steps: int = 0
    images: int = 2000


FULL = Scale()
DRY = Scale(
    small=True,
    batches=(2,),
    first=("edm",),
    later=("forward", "bare"),
    compiled=(("edm", "fp32"),),
    lora_in=("bf16",),
    lora_batch=2,
    lora_side=64,
    sampled=(2,),
    matmul=64,
    repeats=2,
    block_s=0.01,
    quality_steps=3,
    images=20,
)


@contextlib.contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Matrix products and convolutions of fp32 with TF32, or without."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def compiler() -> Iterator[str]:
    """PyTorch's own compiler on a GPU; on a CPU, where that takes a minute, its front end alone."""
    torch._dynamo.reset()
    if CUDA:
        yield "inductor"
        return
    front = partial(torch.compile, backend="eager")
    with mock.patch("torch.compile", front):
        yield "front end alone"


@contextlib.contextmanager
def passes(training: bool = False) -> Iterator[list[int]]:
    """The rows of every pass through a network while it is open; compiled networks show none.
    training: only of passes with gradients.
    """
    rows: list[int] = []

    def note(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, ConditionedModule) and torch.is_grad_enabled() >= training:
            rows.append(len(inputs[0]))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield rows
    finally:
        handle.remove()


def forget_memory() -> None:
    """Gives back what nobody holds, so that a peak is that of the next work alone."""
    gc.collect()
    if CUDA:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@contextlib.contextmanager
def memory_of(cap: int, rows: int) -> Iterator[None]:
    """A device with no more memory than `cap` bytes; without one, passes of more than so many rows
    fail as there.
    """
    if CUDA:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(cap / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return

    def refuse(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, ConditionedModule) and len(inputs[0]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory (made up)")

    handle = torch.nn.modules.module.register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


def place() -> str:
    """The innermost line of the package or of these files that is being carried out."""
    home, frame = f"{step.HOME}/", sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(home) and path != __file__:
            return f"{path.removeprefix(home)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "outside"


@contextlib.contextmanager
def waits_noted() -> Iterator[Counter[str]]:
    """Counts, by place, the operations for which the host waits."""
    found: Counter[str] = Counter()

    def note(message: Any, *rest: Any) -> None:
        if PAST in str(message):
            found[place()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        if CUDA:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if CUDA:
                torch.cuda.set_sync_debug_mode("default")


class Event(NamedTuple):
    """What the profiler saw: on the device or on the host."""

    name: str
    on_device: bool
    seconds: float


@contextlib.contextmanager
def recorded() -> Iterator[list[Event]]:
    """What the profiler sees while it is open, without the names that spans were given."""
    events: list[Event] = []
    activities = [ProfilerActivity.CPU]
    if CUDA:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        yield events
        if CUDA:
            torch.cuda.synchronize()
    assert profiler.profiler is not None
    for event in profiler.profiler.kineto_results.events():
        if not event.is_user_annotation():
            on_device = event.device_type() == DeviceType.CUDA
            events.append(Event(event.name(), on_device, event.duration_ns() / 1e9))


def summed(events: Sequence[Event]) -> dict[str, Any]:
    """Kernel launches, kernels that ran, copies by kind, waits of the host for the device, and the
    device's busy seconds. A pageable copy is one through ordinary host memory: the host waits for
    part of it.
    """
    launches, kernels, busy = 0, 0, 0.0
    copies: Counter[str] = Counter()
    waits: Counter[str] = Counter()
    for event in events:
        if event.on_device:
            busy += event.seconds
            if event.name.startswith("Memcpy"):
                copies[event.name] += 1
            elif not event.name.startswith("Memset"):
                kernels += 1
        elif "LaunchKernel" in event.name:
            launches += 1
        elif event.name in ("cudaStreamSynchronize", "cudaEventSynchronize"):
            waits[event.name] += 1
    counts = {"launches": launches, "kernels": kernels}
    return {**counts, "busy_s": busy, "copies": dict(copies), "waits": dict(waits)}


def product(precision: str, scale: Scale) -> float:
    """FLOP per second of a product of two square matrices of random numbers."""
    side, dtype = scale.matmul, torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=DEVICE, dtype=dtype) for _ in range(2))
    a @ b
    found = timed(lambda: a @ b, scale)
    return 2 * side**3 / found


def peaks(scale: Scale) -> dict[str, Any]:
    """The device's dense FLOP per second in bf16 and TF32: as the makers say where the device is
    known (TF32 is half of bf16 on all of these), and as measured.
    """
    said = [flops for name, flops in step.FLOPS.items() if name in step.machine()]
    with tf32(True):
        measured = {p: product(p, scale) for p in ("bf16", "fp32")}
    chosen = {"bf16": said[0], "fp32": said[0] / 2} if said else measured
    source = "makers" if said else "measured"
    return {"peak": chosen, "source": source, "measured": measured, "side": scale.matmul}


def timed(work: Work, scale: Scale) -> float:
    """Seconds of a call: the median of blocks of calls, each between two synchronisations."""
    one = step.seconds(work)
    calls = max(1, min(MOST_STEPS, round(scale.block_s / max(one, 1e-6))))

    def block() -> None:
        for _ in range(calls):
            work()

    return statistics.median(step.seconds(block) / calls for _ in range(scale.repeats))


def step_figures(
    scale: Scale, peak: dict[str, Any], name: str, batch: int, precision: str
) -> dict[str, Any]:
    """One step without torch.compile. rows: of the largest pass; fewer than the batch where memory
    did not suffice for all at once.
    """
    small = scale.small or name.startswith("digits")
    forget_memory()
    with tf32(True):
        work = step.work_on(name, step.subject(small), batch, precision)
        work()
        with passes() as rows, FlopCounterMode(display=False) as counter:
            work()
        found = measured_step(work, batch, scale)
    flops = counter.get_total_flops()
    rate = flops / found["s"]
    return {
        **{"step": name, "batch": batch, "precision": precision, "compiled": False},
        **found,
        **{"rows": max(rows), "flop": flops, "flop_per_s": rate},
        "utilisation": rate / peak["peak"][precision] if peak else None,
    }


def compiled_figures(scale: Scale, name: str, precision: str) -> dict[str, Any]:
    """One step with every network compiled, at the middle batch. first_s: the first step, with the
    compilation.
    """
    batch = scale.batches[len(scale.batches) // 2]
    forget_memory()
    with tf32(True), compiler() as backend:
        work = step.work_on(name, step.subject(scale.small), batch, precision, compile=True)
        first = step.seconds(work)
        work()
        found = measured_step(work, batch, scale)
    head = {"step": name, "batch": batch, "precision": precision, "compiled": True}
    return {**head, **found, "first_s": first, "compiler": backend}


def lora_figures(scale: Scale, precision: str) -> dict[str, Any]:
    """A step of LCM-LoRA on Stable Diffusion 1.5 with random weights, autoencoder and text encoder
    in it; activations are computed again. held: MiB on the device by role.
    """
    forget_memory()
    batch, side = scale.lora_batch, scale.lora_side
    with lora.size_of(scale.small), tf32(True):
        run = lora.run_of(lora.RECIPE, batch, precision=precision)
        ready = rehearsal(run, image_space((3, side, side)))

        def work() -> None:
            next(ready.trainer.steps())

        work()
        found = measured_step(work, batch, scale)
    held = by_role(ready.trainer, beside(ready))
    return {
        **{"recipe": lora.RECIPE, "batch": batch, "side": side, "precision": precision},
        **found,
        "held": {role: size / 2**20 for role, size in held.items()},
    }


def measured_step(work: Work, batch: int, scale: Scale) -> dict[str, Any]:
    """Time, memory and launches of a warm step."""
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    taken = timed(work, scale)
    memory = {}
    if CUDA:
        memory["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        memory["held_mib"] = torch.cuda.memory_allocated() / 2**20
    with recorded() as events:
        work()
    return {"s": taken, "images_per_s": batch / taken, **memory, **summed(events)}


def sampling_figures(scale: Scale, name: str, batch: int, precision: str) -> dict[str, Any]:
    """Images per second of `generate`, to images on the host."""
    forget_memory()
    dtype = torch.bfloat16 if precision == "bf16" else None
    model, sampler = step.subject(scale.small).to(DEVICE, dtype), SAMPLERS[name]

    def work() -> None:
        model.generate(num=batch, sampler=sampler, batch=batch)

    with tf32(True):
        work()
        taken = timed(work, scale)
    head = {"sampler": name, "evaluations": model.evaluations(sampler), "batch": batch}
    return {**head, "precision": precision, "s": taken, "images_per_s": batch / taken}
