"""SIGKILL at any moment, inside a save as well: the run goes on and ends as if nothing had happened.

A child is forked (the parent has imported torch already), trains and is killed; the next child goes on from what is on
the disk. FEWSTEP_KILLS: the number of kills over all scenarios. FEWSTEP_KILLS_SEED: repeats the moments, as far as the
machine repeats its timing.
"""

import json
import math
import os
import random
import select
import signal
import statistics
import time
import traceback
from typing import NamedTuple

import pytest
import sklearn.datasets
import torch

from fewstep.data.digits import Digits
from fewstep.learning.schedules import Constant
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.models.source import Fresh
from fewstep.models.unet import UNet
from fewstep.run import Run, distil
from fewstep.training.checkpoint import Checkpoints
from fewstep.training.log import read_log
from fewstep.training.optimizers import RAdam
from fewstep.training.trainer import TrainerConfig
from tests.training.tiny import Phased, Rhythm, Single, assert_same, config, state, trainer

KILLS = int(os.environ.get("FEWSTEP_KILLS", "20"))
SEED = int(os.environ.get("FEWSTEP_KILLS_SEED", "0")) or random.SystemRandom().randrange(1, 10**9)
BEGIN, END = b"\x01", b"\x02"


def refuse(message):
    raise AssertionError(f"a kill left damage: {message}")


def train(method, steps):
    """A run of the loop alone."""

    def work(folder, say=refuse):
        one = trainer(method, folder, config(steps=steps, save_every=3, log_every=2))
        one.fit(say=say)
        return one

    return work, steps


def distilled():
    """A whole run with a real network: it also reads data, and exports the student at its end."""
    network = UNet(channels=8, multipliers=(1,), blocks=1, attention=(), head_channels=8, groups=4)
    chosen = TrainerConfig(
        steps=8, batch=8, ema=(0.9, 0.5), device="cpu", save_every=2, log_every=2, health_every=0,
        optimizer=RAdam(lr=1e-3), schedule=Constant(warmup=3),
    )  # fmt: skip
    run = Run(
        Digits(split="all", limit=20),
        ConsistencyDistillation(bins=4),
        Fresh(network=network),
        dropout=0.2,
        trainer=chosen,
    )

    def work(folder, say=refuse):
        assert distil(run, folder, say=say)

    return work, chosen.steps


SCENARIOS = {
    "single": train(Single(), 30),
    "two optimizers": train(Rhythm(), 18),
    "phases": train(Phased(), 18),
    "distillation": distilled(),
}


class Life(NamedTuple):
    """ended: by itself. inside: killed between the begin and the end of a save. saves: (begin, end) of each."""

    ended: bool
    inside: bool
    seconds: float
    saves: list


def live(work, after=None, save=None, delay=0.0):
    """One child: killed `after` seconds, or `delay` behind the begin of its save number `save`, or left to its end."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            torch.set_num_threads(1)
            real = Checkpoints.save

            def announced(self, step, saved):
                os.write(writer, BEGIN)
                real(self, step, saved)
                os.write(writer, END)

            Checkpoints.save = announced
            work()
            code = 0
        except BaseException:
            os.write(writer, traceback.format_exc()[-4000:].encode())
        finally:
            os._exit(code)
    os.close(writer)
    start, heard, times = time.monotonic(), b"", []
    while True:
        left = None if after is None else max(0.0, after - (time.monotonic() - start))
        if not select.select([reader], [], [], left)[0]:
            break
        byte = os.read(reader, 1)
        if not byte:
            break  # the child has closed its end: it is about to exit
        heard += byte
        times.append(time.monotonic() - start)
        if save is not None and heard.count(BEGIN) == save and byte == BEGIN:
            time.sleep(delay)
            break
    if byte_left := (not heard.endswith(b"") or True):
        pass
    del byte_left
    return _end(child, reader, heard, times, start)


def _end(child, reader, heard, times, start):
    raise NotImplementedError
