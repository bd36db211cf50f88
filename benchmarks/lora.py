"""A training step of a LoRA on Stable Diffusion 1.5 in its full size, with random weights: seconds,
and memory by role beside what `fewstep plan` foresees.

    python benchmarks/lora.py [--recipe sd15_lcm_lora] [--side 512] [--batch 1] [--out lora.json]

On a CPU it takes 13 GiB and some minutes; fp16 is bf16 there, as in a plan. The step is the
trainer's own, with autoencoder and text encoder on made-up pictures. The measured peak is of all
bytes that PyTorch's allocator gave, from the first network to the last step: roles are what is held
behind it, and "passing" is the rest.
"""

import argparse
import gc
import json
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from step import DEVICE, machine, seconds
from torch.profiler import ProfilerActivity, profile

from fewstep import recipes
from fewstep.choice import replaced
from fewstep.cli.plan import beside, plan_of, rehearsal
from fewstep.models import sd15
from fewstep.models.space import image_space
from fewstep.report.tables import Table, markdown
from fewstep.run import Prepared, Run
from fewstep.training.plan import by_role

CUDA = DEVICE.type == "cuda"
RECIPE = "sd15_lcm_lora"
SIDE = 512
FEW = {"block_out_channels": [8] * 4, "layers_per_block": 1, "norm_num_groups": 4}
SMALL: dict[str, dict[str, Any]] = {
    "UNET": {**sd15.UNET, **FEW, "attention_head_dim": 2},
    "AUTOENCODER": {**sd15.AUTOENCODER, **FEW},
    "TEXT": {
        **{"hidden_size": 16, "intermediate_size": 32, "projection_dim": 16},
        **{"num_hidden_layers": 1, "num_attention_heads": 2},
    },
}
"""The same with 8 channels everywhere, for tests."""


@contextmanager
def size_of(small: bool) -> Iterator[None]:
    """Within the block Stable Diffusion 1.5 is small, or as large as it is."""
    with mock.patch.multiple(sd15, **SMALL) if small else nullcontext():
        yield


def run_of(recipe: str, batch: int, **options: Any) -> Run:
    """The recipe in one pass. options: of the trainer."""
    run: Any = recipes.recipe(recipe)
    fixed = {"batch": batch, "micro_batch": 0, "device": DEVICE.type, **options}
    return replaced(run, trainer=replaced(run.trainer, **fixed))


def measured(run: Run, side: int, steps: int) -> dict[str, Any]:
    """Seconds of each step, and bytes: at the peak, and held by role."""
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        ready, taken = stepped(run, side, steps)
        peak = torch.cuda.max_memory_allocated()
    else:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            ready, taken = stepped(run, side, steps)
        peak = peak_of(profiler)
    precision = ready.trainer.config.precision
    return {
        **{"precision": precision, "seconds": taken, "peak": peak},
        "held": by_role(ready.trainer, beside(ready)),
    }


def stepped(run: Run, side: int, steps: int) -> tuple[Prepared, list[float]]:
    """The run behind so many steps, and the seconds of each."""
    ready = rehearsal(run, image_space((3, side, side)))
    return ready, [seconds(lambda: next(ready.trainer.steps())) for _ in range(steps)]


def peak_of(profiler: profile) -> int:
    """The most bytes that were there at one time."""
    assert profiler.profiler
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return int(torch.tensor(sizes).cumsum(0).max())


def foreseen(run: Run, side: int) -> dict[str, Any]:
    """The same as the plan has it."""
    plan = plan_of(run, image_space((3, side, side)))
    trained = dict(plan.trained)
    return {"seconds": plan.step, "peak": plan.peak, "held": dict(plan.held), "trained": trained}


def compared(found: dict[str, Any], said: dict[str, Any]) -> Table:
    """MiB by role: measured, foreseen."""
    rows = []
    for role in dict.fromkeys((*found["held"], *said["held"])):
        rows.append([role, *(mib(one["held"].get(role, 0)) for one in (found, said))])
    rows.append(["passing", *(mib(passing(one)) for one in (found, said))])
    rows.append(["**peak**", *(mib(one["peak"]) for one in (found, said))])
    return Table(["role", "MiB measured", "MiB foreseen"], rows, texts=1)


def passing(one: dict[str, Any]) -> int:
    """Bytes that come and go: activations, gradients, temporaries."""
    held: dict[str, int] = one["held"]
    return int(one["peak"]) - sum(held.values())


def mib(size: int) -> str:
    """Bytes as a cell."""
    return f"{size / 2**20:,.0f}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--side", type=int, default=SIDE, help="of the pictures, in pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2, help="that are measured, with the first")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--small", action="store_true", help="8 channels everywhere")
    parser.add_argument("--out", type=Path, default=Path("lora.json"), help="the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with size_of(options.small):
        run = run_of(options.recipe, options.batch)
        found = measured(run, options.side, options.steps)
        found["grown"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        gc.collect()
        said = foreseen(run, options.side)
    facts = {
        **{"machine": machine(), "cores": os.cpu_count(), "threads": options.threads},
        **{"torch": str(torch.__version__), "date": str(date.today()), "command": sys.argv[1:]},
        **{"recipe": options.recipe, "side": options.side, "batch": options.batch},
    }
    report = {**facts, "measured": found, "foreseen": said}
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(facts))
    print(markdown(compared(found, said)))
    print("seconds of a step:", ", ".join(f"{taken:.1f}" for taken in found["seconds"]))


if __name__ == "__main__":
    main()
