"""SIGKILL at any moment, inside a save as well: the run goes on and ends as if nothing had
happened.

A child is forked (the parent has imported torch already), trains and is killed; the next child goes
on from what is on the disk. FEWSTEP_KILLS: the number of kills over all scenarios.
FEWSTEP_KILLS_SEED: repeats the moments, as far as the machine repeats its timing.
"""

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
from tests.training.tiny import Phased, Rhythm, Single, config, real, trainer
from tests.untimed import untimed

from fewstep.data.digits import Digits
from fewstep.learning.schedules import Constant
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.methods.dmd2 import DMD2
from fewstep.methods.progressive import Progressive
from fewstep.models.source import Fresh
from fewstep.models.unet import UNet
from fewstep.run import Run, distil
from fewstep.training.checkpoint import Checkpoints
from fewstep.training.config import TrainerConfig
from fewstep.training.log import read_log
from fewstep.training.optimizers import RAdam

KILLS = int(os.environ.get("FEWSTEP_KILLS", "20"))
SEED = int(os.environ.get("FEWSTEP_KILLS_SEED", "0")) or random.SystemRandom().randrange(1, 10**9)
BEGIN, END = b"\x01", b"\x02"
LIMIT = 120.0


def usual(message):
    """What runs say that are short, and that go on."""
    return message.startswith(("warning: ", "goes on behind step "))


def refuse(message):
    if not usual(message):
        raise AssertionError(f"a kill left damage: {message}")


def train(method, steps, make=trainer, **changes):
    """A run of the loop alone."""

    def work(folder, say=refuse):
        make(method, folder, config(steps=steps, save_every=3, log_every=2, **changes)).fit(say=say)

    return work, steps


def distilled():
    """A whole run with a real network: it also reads data, and exports the student at its end."""
    network = UNet(channels=8, multipliers=(1,), blocks=1, attention=(), head_channels=8, groups=4)
    chosen = TrainerConfig(
        steps=8,
        batch=8,
        ema=(0.9, 0.5),
        device="cpu",
        save_every=2,
        log_every=2,
        health_every=0,
        optimizer=RAdam(lr=1e-3),
        schedule=Constant(warmup=3),
    )
    run = Run(
        Digits(split="all", limit=20),
        ConsistencyDistillation(bins=4),
        Fresh(network=network),
        dropout=0.2,
        trainer=chosen,
    )

    def work(folder, say=refuse):
        distil(run, folder, say=say)

    return work, chosen.steps


SCENARIOS = {
    "single": train(Single(), 30),
    "two optimizers": train(Rhythm(), 18),
    "phases": train(Phased(), 18),
    "distillation": distilled(),
    # Two optimizers of which one steps two networks, with their loss scales; rounds of 3, 3, 6 and
    # 6 steps.
    "distribution matching": train(DMD2(fake_steps=1), 9, real, precision="fp16"),
    "progressive": train(Progressive(start=16, end=1), 18, real),
}
QUOTA = math.ceil(KILLS / len(SCENARIOS))  # kills of each scenario
INSIDE = max(2, QUOTA // 4)  # of which so many inside a save


class Life(NamedTuple):
    """ended: by itself, not killed. inside: killed between the begin and the end of a save."""

    ended: bool
    inside: bool
    seconds: float
    saving: list[float]


def live(work, after=LIMIT, save=0, delay=0.0):
    """One child: killed `after` seconds, or `delay` behind the begin of its save number `save`, or
    left to its end.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            torch.set_num_threads(1)
            announce(writer)
            work()
            code = 0
        except BaseException:
            os.write(writer, traceback.format_exc()[-4000:].encode())
        finally:
            os._exit(code)
    os.close(writer)
    start, heard, times = time.monotonic(), b"", []
    while True:
        left = max(0.0, start + after - time.monotonic())
        if not select.select([reader], [], [], left)[0]:
            os.kill(child, signal.SIGKILL)
            break
        byte = os.read(reader, 1)
        if not byte:  # the child has closed its end: it exits
            break
        heard += byte
        times.append(time.monotonic() - start)
        if byte == BEGIN and heard.count(BEGIN) == save:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            break
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - start
    with os.fdopen(reader, "rb") as pipe:
        heard += pipe.read()
    killed = os.WIFSIGNALED(status)
    assert killed or os.WEXITSTATUS(status) == 0, (
        f"seed {SEED}: {heard.strip(BEGIN + END).decode()}"
    )
    assert seconds < LIMIT, f"seed {SEED}: the child hung"
    saving = [end - begin for begin, end in zip(times[::2], times[1::2])]
    return Life(not killed, killed and heard.endswith(BEGIN), seconds, saving)


def announce(writer):
    """Tells the parent when a save begins and ends."""
    real = Checkpoints.save

    def save(self, step, saved, prune):
        os.write(writer, BEGIN)
        real(self, step, saved, prune)
        os.write(writer, END)

    Checkpoints.save = save


def content(folder):
    """Everything in a run's folder but the lock, what was set aside, and checkpoints before the
    last two.

    A kill between the last save and the removal of the oldest checkpoint leaves that one: more than
    was asked for.
    """
    older = tuple(f"checkpoints/{p.name}" for p in sorted(folder.glob("checkpoints/step-*"))[:-2])
    return {
        name: untimed(path) if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
        if not (name := str(path.relative_to(folder))).startswith(
            (".lock", "checkpoints/.bad-", *older)
        )
    }


def assert_finished(folder, expected, steps):
    """The same files with the same bytes: weights, averages, optimizers, counters, log, export;
    nothing else.
    """
    assert [line["step"] for line in read_log(folder / "log.jsonl")] == list(range(1, steps + 1)), (
        f"seed {SEED}"
    )
    found = content(folder)
    assert sorted(found) == sorted(expected), f"seed {SEED}"
    assert [name for name in expected if found[name] != expected[name]] == [], f"seed {SEED}"


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory):
    """Everything is imported and read once, here: a child that imports for a second is killed in
    its imports.
    """
    digits = sklearn.datasets.load_digits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sklearn.datasets, "load_digits", lambda: digits)
        for name in ("two optimizers", "distillation", "distribution matching", "progressive"):
            SCENARIOS[name][0](tmp_path_factory.mktemp("warm"))
        yield


def test_the_quota_has_power():
    assert len(SCENARIOS) * INSIDE >= 5


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_killed_run_ends_as_if_nothing_had_happened(tmp_path, name):
    work, steps = SCENARIOS[name]
    rng = random.Random(f"{SEED} {name}")
    whole = live(lambda: work(tmp_path / "whole"))
    expected = content(tmp_path / "whole")
    pause = statistics.median(whole.saving)
    killed = inside = lives = runs = 0
    while killed < QUOTA or inside < INSIDE:
        lives += 1
        assert lives < 20 * QUOTA, (
            f"seed {SEED}: only {killed} kills, {inside} of them inside a save"
        )
        folder = tmp_path / f"run {runs}"
        if inside < INSIDE and (killed >= QUOTA or rng.random() < 0.5):
            life = live(
                lambda at=folder: work(at), save=rng.randint(1, 2), delay=rng.uniform(0, pause)
            )
        else:
            life = live(lambda at=folder: work(at), after=rng.uniform(0, 0.7 * whole.seconds))
        killed, inside = killed + (not life.ended), inside + life.inside
        if life.ended:
            assert_finished(folder, expected, steps)
            runs += 1
    folder = tmp_path / f"run {runs}"
    assert live(lambda: work(folder)).ended
    assert_finished(folder, expected, steps)
    assert inside >= INSIDE


@pytest.mark.parametrize(
    ("name", "method"), [("phases", Phased()), ("progressive", Progressive(start=16, end=1))]
)
def test_a_kill_in_the_save_between_two_phases(tmp_path, name, method):
    """Step 6 ends a phase in both: with that checkpoint or the one before, the next phase begins as
    it should.
    """
    work, steps = SCENARIOS[name]
    assert 6 in method.phases(steps)
    whole = live(lambda: work(tmp_path / "whole"))
    for share in (
        0.0,
        0.6,
        1.5,
    ):  # of a save's time: before it, in it, and (as a rule) in the first step of the phase
        folder = tmp_path / f"run {share}"
        life = live(
            lambda at=folder: work(at), save=2, delay=share * statistics.median(whole.saving)
        )
        assert share or not life.ended
        live(lambda at=folder: work(at))
        assert_finished(folder, content(tmp_path / "whole"), steps)


def test_kills_and_damage_together(tmp_path):
    """Behind each kill a bit of the newest checkpoint flips; the next child must say so and use the
    one before.
    """
    rng = random.Random(f"{SEED} damage")
    work, steps = SCENARIOS["two optimizers"]
    whole = live(lambda: work(tmp_path / "whole"))
    pause = statistics.median(whole.saving)
    folder, heard, damaged = tmp_path / "run", tmp_path / "heard", []

    def say(message):
        if not usual(message):
            with heard.open("a") as file:
                file.write(message + "\n")

    # Killed in its third save a child leaves two checkpoints or three: one to damage, one to go
    # back to.
    while not live(lambda: work(folder, say), save=3, delay=rng.uniform(0, pause)).ended:
        newest = max(folder.glob("checkpoints/step-*"))
        path = rng.choice(sorted(newest.glob("*.safetensors")))
        flipped = bytearray(path.read_bytes())
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        damaged.append(newest.name)
    assert_finished(folder, content(tmp_path / "whole"), steps)
    assert len(damaged) >= 2, f"seed {SEED}"
    assert [line.split()[1] for line in heard.read_text().splitlines()] == damaged, f"seed {SEED}"
    assert len(list(folder.glob("checkpoints/.bad-*"))) == len(damaged), f"seed {SEED}"


def test_what_a_killed_process_left_in_the_folder_is_removed(folder):
    """A kill inside the writing of status.json, log.jsonl or an exported model leaves a file or
    folder beside it.
    """
    for name in (".tmp-99-status.json", ".tmp-99-log.jsonl", ".tmp-99-run.yaml"):
        (folder / name).write_text("{")
    for name in (".tmp-99-student", ".del-99-student"):
        (folder / name).mkdir()
        (folder / name / "model.json").write_text("{")
    trainer(Single(), folder, config(steps=2)).fit()
    assert [p.name for p in folder.rglob(".*") if p.name.startswith((".tmp-", ".del-"))] == []
