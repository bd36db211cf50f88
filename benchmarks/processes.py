"""Images per second of training steps in one process and in several, one thread each, interleaved.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 benchmarks/processes.py --repeats 5

The steps are those of `Trainer.fit` for three recipes with their batch, clipping, optimizer and
averages; the images of cifar10_teacher_small are made up. In each repeat the first process steps
alone while the others wait, then all step together.
"""

import argparse
import os
import time
from collections.abc import Callable
from datetime import date
from statistics import median

import torch
import torch.distributed as dist

from fewstep.choice import replaced
from fewstep.cli.configure import configured
from fewstep.data.dataset import held_images
from fewstep.training.processes import World, together

RECIPES = ("digits_teacher", "digits_cd", "cifar10_teacher_small")


def step_of(recipe: str, times: int, world: World) -> tuple[Callable[[], None], int]:
    """One step of the recipe's own trainer with so many times its batch, and that batch."""
    run, _ = configured(recipe, [])
    run = replaced(run, trainer=replaced(run.trainer, batch=times * run.trainer.batch))
    images = torch.randint(
        256, (256, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    made = held_images(images, torch.arange(256) % 10, 10, torch.arange(256))
    dataset = made if recipe.startswith("cifar10") else run.data.dataset()
    trainer = run.prepared(dataset, world=world).trainer

    def step() -> None:
        next(trainer.steps())

    return step, run.trainer.batch


def seconds(step: Callable[[], None], steps: int) -> float:
    """Of a step, the median."""
    times = []
    for _ in range(steps):
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
    return median(times)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of each, per repeat")
    parser.add_argument("--times", type=int, default=1, help="of the recipes' batches")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with together(120.0) as world:
        assert world.size > 1, "start it with torchrun"
        for recipe in RECIPES:
            (all_together, batch), (alone, _) = (
                step_of(recipe, options.times, w) for w in (world, World())
            )
            all_together()
            ratios, rates = [], []
            for _ in range(options.repeats):
                dist.barrier()
                one = seconds(alone, options.steps) if world.is_leader else 0.0
                dist.barrier()
                both = seconds(all_together, options.steps)
                ratios.append(one / both)
                rates.append((batch / one if one else 0.0, batch / both))
            if world.is_leader:
                one_rate, all_rate = (median(rate[i] for rate in rates) for i in range(2))
                print(
                    f"{recipe}, batch {batch}: {one_rate:.0f} images/s in one process, "
                    f"{all_rate:.0f} in {world.size}; "
                    f"ratio {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); torch "
                    f"{torch.__version__}, "
                    f"{date.today()}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
                )


if __name__ == "__main__":
    main()
