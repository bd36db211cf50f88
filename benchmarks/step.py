"""Seconds, images/s and peak memory of training steps, in units of F: one forward of the same
network in the same run.

    python benchmarks/step.py --steps edm,cd --repeats 3 --precision fp32
        [--profile] [--against ../other-checkout]

The network is the guided-diffusion U-Net of 7.66 M parameters at 32×32: 57.5 GFLOP for a forward of
16 images. Steps are those of `Trainer.steps`, data and all; "dmd2" is five updates of fake and head
and one of the student. "bare" is EDM training written plainly: what the trainer adds is measured
against it, here and on the network of the recipe digits_teacher (8×8, batch 128). Every repeat
takes all steps in turn; numbers are medians, ratios medians of the repeats' own. With one thread on
a CPU the clock is that of the process: a busy machine disturbs it less.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from fewstep.models.space import image_space

HOME = Path(__file__).resolve().parent.parent
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
METHODS = {
    "cd": "consistency_distillation",
    "ect": "easy_consistency",
    "progressive": "progressive",
    "dmd2": "dmd2",
}
TRAINED = ("edm", *METHODS, "digits")
STEPS = (*TRAINED, "sample", "forward", "bare", "digits_bare")
GOALS = {"edm": 3.4, "cd": 6.6, "ect": 4.4, "sample": 1.1}  # F, in fp32
HALF, GRAPH = (
    0.65,
    0.6,
)  # bf16 of fp32; what passes in cd of what passes where the teacher's graph is kept
OVERHEAD = {"edm": ("bare", 1.03), "digits": ("digits_bare", 1.10)}
FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bf16, as the makers say
COLUMNS = (
    "s",
    "F",
    "images/s",
    "GFLOP/s",
    "of fp32",
    "of bare",
    "of other",
    "peak",
    "held",
    "grown",
)
BATCH = (16, 128)  # at 32×32, of the digits
Work = Callable[[], Any]


def work_of(name: str, precision: str) -> Work:
    """What is measured: one step."""
    small = name.startswith("digits")
    return work_on(name, subject(small), BATCH[small], precision)


def subject(small: bool) -> Any:
    """The model that is measured: of the recipe digits_teacher (8×8), or of 32×32."""
    from fewstep.models.source import Fresh
    from fewstep.models.unet import UNet
    from fewstep.recipes.digits import digits_teacher

    source = (
        digits_teacher().teacher
        if small
        else Fresh(network=UNet(channels=64, multipliers=(1, 2, 2), blocks=2))
    )
    return source.load(image_space((1, 8, 8) if small else (3, 32, 32), 10), 0)


def work_on(name: str, model: Any, batch: int, precision: str, **options: Any) -> Work:
    """One step of that model. options: of the trainer, where it is one of its steps."""
    dtype = torch.bfloat16 if precision == "bf16" else None
    images, labels = (
        torch.randint(256, (64, *model.shape), dtype=torch.uint8),
        torch.arange(64) % 10,
    )
    if name in ("forward", "sample"):
        return evaluation(name, model.to(DEVICE, dtype), batch)
    if name.endswith("bare"):
        return bare(model.denoiser.network.to(DEVICE), images, labels, batch, dtype)
    return training(name, model, images, labels, batch, precision, **options)


def evaluation(name: str, model: Any, batch: int) -> Work:
    """F, or one-evaluation sampling."""
    from fewstep.diffusion.samplers import Renoise

    if name == "sample":
        sampler = Renoise(steps=1)
        return lambda: model.generate(num=batch, sampler=sampler, batch=batch)
    x, t = (
        torch.randn(batch, *model.shape, device=DEVICE),
        torch.linspace(0.1, 10, batch, device=DEVICE),
    )
    cond = model.conditioner(model.asked_of(0, batch)).to(DEVICE)
    model.denoiser.eval()
    return torch.no_grad()(lambda: model.denoiser(x, t, cond))


def bare(
    network: Any, images: Tensor, labels: Tensor, batch: int, dtype: torch.dtype | None
) -> Work:
    """EDM's loss, backward, fused AdamW, average, and nothing else."""
    from fewstep.diffusion.conditioning import Cond

    weights = list(network.train().parameters())
    optimizer = torch.optim.AdamW(weights, lr=1e-3, fused=True)
    average = [w.detach().clone() for w in weights]

    def step() -> None:
        index = torch.randint(len(images), (batch,))
        x0, label = (images[index].float() / 127.5 - 1).to(DEVICE), labels[index].to(DEVICE)
        t = torch.exp(torch.randn(batch, device=DEVICE) * 1.2 - 1.2)
        sigma = t.view(-1, 1, 1, 1)
        x_t, q = x0 + sigma * torch.randn_like(x0), torch.sqrt(sigma**2 + 0.25)
        with torch.autocast(DEVICE.type, dtype, enabled=dtype is not None):
            f = network(x_t / q, t, Cond({"label": label}), None)
        # 0.25/q² x_t + 0.5 sigma/q f - x0, in units of what stands before f
        ((0.25 / q**2 * x_t - x0) / (0.5 * sigma / q) + f.float()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1e-3)

    return step


def training(
    name: str,
    model: Any,
    images: Tensor,
    labels: Tensor,
    batch: int,
    precision: Any,
    **options: Any,
) -> Work:
    """One step of the trainer's own loop; "cd_graph" forgets that teacher and target do not
    learn.
    """
    from fewstep.data.dataset import held_images
    from fewstep.data.digits import Digits
    from fewstep.learning.method import Method
    from fewstep.run import Run
    from fewstep.training.config import TrainerConfig

    method: Method = Method.parse(METHODS.get(name.removesuffix("_graph"), "diffusion"))
    dataset = held_images(images, labels, 10, torch.arange(len(images)))
    fixed = {"batch": batch, "precision": precision, "log_every": 10**6, "device": DEVICE.type}
    config = TrainerConfig(**fixed, **options)
    trainer = Run(Digits(), method, trainer=config).prepared(dataset, model=model).trainer

    def step() -> None:
        next(trainer.steps())

    if name != "cd_graph":
        return step
    for parameter in (*trainer.nets.teacher.parameters(), *trainer.nets.target.parameters()):
        parameter.requires_grad_(True).register_post_accumulate_grad_hook(
            lambda p: setattr(p, "grad", None)
        )
    return mock.patch("torch.no_grad", contextlib.nullcontext)(step)


def seconds(work: Work) -> float:
    """Of a call, the device's work included."""
    clock = (
        time.process_time
        if DEVICE.type == "cpu" and torch.get_num_threads() == 1
        else time.perf_counter
    )
    wait = torch.cuda.synchronize if DEVICE.type == "cuda" else lambda: None
    wait()
    begun = clock()
    work()
    wait()
    return clock() - begun


def serve(keys: Sequence[str]) -> None:
    """Prints the FLOP of each step, then the seconds of each for every line on standard input."""
    works, flops = {key: work_of(*key.split(":")) for key in keys}, {}
    for key, work in works.items():
        work()
        with FlopCounterMode(display=False) as counter:
            work()
        flops[key] = counter.get_total_flops()
    print(json.dumps(flops), flush=True)
    for _ in sys.stdin:
        times = {
            key: [seconds(work) for _ in range(5 if "digits" in key else 1)]
            for key, work in works.items()
        }
        print(
            json.dumps({key: statistics.median(found) for key, found in times.items()}), flush=True
        )


def memory(key: str) -> None:
    """Prints MiB of tensors in three steps, at their peak and held between steps; on a CPU also
    what the process grew by, libraries included, and what the C library's allocator does not use
    again.
    """
    F.conv2d(torch.randn(2, 8, 8, 8), torch.randn(8, 8, 3, 3))  # loads oneDNN
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    work = thrice(work_of(*key.split(":")))
    if DEVICE.type == "cuda":
        found = {"peak": torch.cuda.max_memory_allocated(), "held": torch.cuda.memory_allocated()}
    else:
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            work = thrice(work_of(*key.split(":")))
        assert profiler.profiler
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        line = torch.tensor(
            [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
        ).cumsum(0)
        found = {"peak": int(line.max()), "held": int(line[-1]), "grown": grown}
    del work
    print(json.dumps({k: value / 2**20 for k, value in found.items()}))


def thrice(work: Work) -> Work:
    """The work, done three times."""
    for _ in range(3):
        work()
    return work


def child(checkout: Path, threads: int, *arguments: str) -> subprocess.Popen[str]:
    """This file in another process, with the package of a checkout."""
    environment = os.environ | {
        "PYTHONPATH": str(checkout / "src"),
        "OMP_NUM_THREADS": str(threads),
    }
    command = [sys.executable, __file__, "--threads", str(threads), *arguments]
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def answer(process: Any, ask: str = "") -> dict[str, Any]:
    """The next line that a child prints."""
    process.stdin.write(ask)
    process.stdin.flush()
    if not (line := process.stdout.readline()):
        raise SystemExit(f"a measuring process ended with code {process.wait()}")
    return json.loads(line)


def measure(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """All numbers, by step:precision."""
    wanted = dict.fromkeys(
        ["forward", *options.steps, *(OVERHEAD[s][0] for s in options.steps if s in OVERHEAD)]
    )
    keys = list(
        dict.fromkeys(
            ["forward:fp32", *(f"{step}:{p}" for p in options.precision for step in wanted)]
        )
    )
    checkouts = [HOME, *([options.against.resolve()] if options.against else [])]
    children = [child(checkout, options.threads, "--serve", *keys) for checkout in checkouts]
    flops, *_ = [answer(process) for process in children]
    rounds: list[dict[int, dict[str, float]]] = []
    for number in range(options.repeats):
        order = list(enumerate(children))
        rounds.append(
            {
                place: answer(process, "\n")
                for place, process in (order if number % 2 else order[::-1])
            }
        )
        print(f"repeat {number + 1}: {rounds[-1][0]}", file=sys.stderr)
    for process in children:
        process.communicate()

    def ratio(key: str, other: str, place: int = 0) -> float | None:
        pairs = [r[0][key] / r[place][other] for r in rounds if other in r.get(place, ())]
        return statistics.median(pairs) if pairs else None

    rows: dict[str, dict[str, Any]] = {}
    for key in keys:
        name, precision = key.split(":")
        taken, plain = statistics.median(r[0][key] for r in rounds), OVERHEAD.get(name, ("",))[0]
        rows[key] = {
            "s": taken,
            "F": ratio(key, "forward:fp32"),
            "of fp32": ratio(key, f"{name}:fp32"),
        }
        rows[key] |= {
            "images/s": BATCH[name.startswith("digits")] / taken,
            "GFLOP/s": flops[key] / taken / 1e9,
        }
        rows[key] |= {"of bare": ratio(key, f"{plain}:{precision}"), "of other": ratio(key, key, 1)}
    for key in [k for k in keys if k.split(":")[0] in TRAINED] + ["cd_graph:fp32"] * (
        "cd:fp32" in keys
    ):
        process = child(HOME, options.threads, "--memory", key)
        rows.setdefault(key, {}).update(answer(process))
        process.communicate()
    return rows


def report(rows: dict[str, dict[str, Any]]) -> None:
    """Prints a table in Markdown, and which goals were missed."""
    print(f"| step | {' | '.join(COLUMNS)} |\n|---|{'--:|' * len(COLUMNS)}")
    goals = [(f"{name}:fp32", "F", goal) for name, goal in GOALS.items()]
    goals += [(f"{name}:bf16", "of fp32", HALF) for name in GOALS]
    goals += [
        (f"{name}:{p}", "of bare", goal)
        for name, (_, goal) in OVERHEAD.items()
        for p in ("fp32", "bf16")
    ]
    if "cd_graph:fp32" in rows:
        cd, graph = (row["peak"] - row["held"] for row in (rows["cd:fp32"], rows["cd_graph:fp32"]))
        rows["cd_graph:fp32"]["passing"], goals = (
            cd / graph,
            [*goals, ("cd_graph:fp32", "passing", GRAPH)],
        )
    for key, row in rows.items():
        numbers = [
            "" if (n := row.get(c)) is None else f"{n:.3g}" if n < 100 else f"{n:.0f}"
            for c in COLUMNS
        ]
        print(f"| {key} | {' | '.join(numbers)} |")
    for key, what, goal in goals:
        if (found := rows.get(key, {}).get(what)) is not None:
            print(f"{'missed' if found > goal else 'met'}: {key} {found:.3g} {what}, goal {goal}")
    for flops in [flops for name, flops in FLOPS.items() if name in machine()]:
        shares = (
            f"{key} {row['GFLOP/s'] * 1e9 / flops:.1%}"
            for key, row in rows.items()
            if "bf16" in key
        )
        print("model-FLOP utilisation:", ", ".join(shares))


def machine() -> str:
    """The GPU, or the processor."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    lines = info.read_text().splitlines() if (info := Path("/proc/cpuinfo")).is_file() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", default=",".join([*TRAINED, "sample"]), help="of " + ", ".join(STEPS)
    )
    parser.add_argument("--precision", default="fp32,bf16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--against", type=Path, help="another checkout, measured in turn with this one"
    )
    parser.add_argument(
        "--profile", action="store_true", help="where the time goes, instead of measuring"
    )
    parser.add_argument("--out", type=Path, default=Path("step.json"), help="the numbers as JSON")
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.steps, options.precision = options.steps.split(","), options.precision.split(",")
    torch.set_num_threads(options.threads)
    if unknown := {*options.steps} - {*STEPS} | {*options.precision} - {"fp32", "bf16"}:
        parser.error(
            f"unknown: {', '.join(unknown)}; steps are {', '.join(STEPS)}, precisions fp32 and bf16"
        )
    if options.serve:
        serve(options.serve)
    elif options.memory:
        memory(options.memory)
    elif options.profile:
        for key in [
            f"{step}:{precision}" for step in options.steps for precision in options.precision
        ]:
            work = thrice(work_of(*key.split(":")))
            with profile() as profiler:
                thrice(work)
            print(
                key,
                profiler.key_averages().table(f"self_{DEVICE.type}_time_total", row_limit=25),
                sep="\n",
            )
    else:
        facts: dict[str, Any] = {
            "machine": machine(),
            "cores": os.cpu_count(),
            "threads": options.threads,
        }
        facts |= {"torch": torch.__version__, "date": str(date.today()), "command": sys.argv[1:]}
        rows = measure(options)
        options.out.write_text(
            json.dumps({**facts, "rows": rows}, indent=1) + "\n", encoding="utf-8"
        )
        print(json.dumps(facts))
        report(rows)


if __name__ == "__main__":
    main()
