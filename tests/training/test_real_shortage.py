"""Memory that really runs out, in a process of its own."""

import resource
import subprocess
import sys
from pathlib import Path

import torch
from tests.training.tiny import (
    SHAPE,
    Single,
    config,
    data,
    trainer,
)
from torch import nn

from fewstep.training.optimizers import Sgd

ROOT = Path(__file__).parents[2]
WIDE = 1 << 18  # numbers in a row of a layer: 1 MiB


class Wide(Single):
    """A network whose activations, and not its weights, take the memory: three layers of them at
    the worst.
    """

    def nets(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = (
                nn.Flatten(),
                nn.Linear(4, WIDE),
                nn.SiLU(),
                nn.Linear(WIDE, 4),
                nn.Unflatten(1, SHAPE),
            )
        return self.Nets(nn.Sequential(*layers), nn.Identity())

    def after_step(self, nets, clock):
        pass


def wide(micro):
    """One step, 64 rows; a number that all weights of a layer have part in."""
    chosen = config(steps=1, batch=64, micro_batch=micro, optimizer=Sgd(lr=1e-3), ema=(0.0,))
    return trainer(Wide(dropout=0.0), None, chosen, data(0, 64))


def total(one):
    return one.nets.student[1].bias.detach().double().square().sum().item()


def short_of_memory():
    """The one step, where the system gives 140 MiB beside the weights; 64 rows need about 192."""
    torch.set_num_threads(1)
    one = wide(0)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (140 << 20),) * 2)
    one.fit()
    print(one.step.micro, repr(total(one)))


def test_a_real_shortage_under_a_limit_of_the_address_space():
    """In a new process: this one may hold free memory of earlier tests, which would be room to
    spare.
    """
    command = [
        sys.executable,
        "-c",
        "import tests.training.test_real_shortage as this; this.short_of_memory()",
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-2000:]
    micro, found = done.stdout.split()
    assert micro in ("8", "16", "32"), done.stdout
    straight = wide(int(micro))
    before = total(straight)
    straight.fit()
    assert float(found) == total(straight) != before
