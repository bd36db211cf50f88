"""Memory that really runs out, in a process of its own."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.training.tiny import (
    SHAPE,
    Single,
    config,
    data,
    trainer,
)
from torch import nn

from fewstep.cli.main import code_of
from fewstep.data.dataset import held_images
from fewstep.data.digits import Digits
from fewstep.learning.schedules import Constant
from fewstep.methods.diffusion import Diffusion
from fewstep.models.dit import Dit
from fewstep.models.source import Fresh
from fewstep.models.space import image_space
from fewstep.models.unet import UNet
from fewstep.run import Run
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
    chosen = config(
        steps=1,
        batch=64,
        micro_batch=micro,
        optimizer=Sgd(lr=1e-3 / 3),
        schedule=Constant(),
        ema=(0.0,),
    )
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


NETWORKS = {
    "unet": UNet(
        channels=16, multipliers=(1,), blocks=1, attention=(1,), head_channels=16, groups=8
    ),
    "dit": Dit(width=32, depth=1, heads=2, patch=1),
}
LIMITS = (0, 15, 40)  # MiB beside what stays


def convolved(kind, rows=64):
    """One step of a network with convolutions and attention, on rows of 16×16."""
    model = Fresh(network=NETWORKS[kind]).load(image_space((1, 16, 16), 0), 0)
    images = torch.zeros(rows, 1, 16, 16, dtype=torch.uint8)
    chosen = config(steps=1, batch=rows, ema=(0.0,), schedule=Constant())
    run = Run(Digits(), Diffusion(), trainer=chosen)
    return run.prepared(held_images(images, None, 0), model=model).trainer


def ends_of(kind):
    """How that step ends under each limit, in a child for each.

    A step of one row goes before: what PyTorch imports when it is first needed crashes the process
    where that finds no memory.
    """
    torch.set_num_threads(1)
    convolved(kind, rows=1).fit()
    for limit in LIMITS:
        one = convolved(kind)
        if os.fork() == 0:
            now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now + (limit << 20),) * 2)
            try:
                one.fit()
                print(limit, "micro", one.step.micro, flush=True)
            except BaseException as error:
                print(limit, "code", code_of(error), type(error).__name__, error, flush=True)
            os._exit(0)
        os.wait()


@pytest.mark.parametrize("kind", NETWORKS)
def test_convolutions_and_attention_that_run_short(kind):
    """Whatever they and their libraries say: the passes are halved, or it ends with 5."""
    command = f"import tests.training.test_real_shortage as this; this.ends_of({kind!r})"
    done = subprocess.run(
        [sys.executable, "-c", command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ends = [line.split()[1:3] for line in done.stdout.splitlines()]
    assert len(ends) == len(LIMITS), done.stdout
    assert ends[0] == ["code", "5"], done.stdout
    halved = [int(size) for word, size in ends if word == "micro"]
    assert [word for word, code in ends if word == "code" and code != "5"] == [], done.stdout
    assert any(size < 64 for size in halved), done.stdout
    assert all(size in (1, 2, 4, 8, 16, 32, 64) for size in halved), done.stdout


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
