"""A run that is stopped at any step and goes on ends with the same bits as one that never
stopped.
"""

import json
import signal
from pathlib import Path

import pytest
import torch
from tests.training.tiny import (
    Phased,
    Rhythm,
    Single,
    StopError,
    assert_same,
    config,
    cut,
    data,
    part,
    state,
    stop_at,
    trainer,
)

from fewstep.data.digits import Digits
from fewstep.diffusion.times import Karras
from fewstep.learning.schedules import Constant
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.methods.diffusion import Diffusion
from fewstep.models.source import Fresh
from fewstep.models.unet import UNet
from fewstep.run import Run, distil
from fewstep.training.checkpoint import Checkpoints
from fewstep.training.config import TrainerConfig
from fewstep.training.log import read_log
from fewstep.training.optimizers import AdamW, RAdam, Sgd

STEPS = 12
SCENARIOS = {  # micro_batch=3 leaves a last part of 2 rows
    "single": (Single(), {}),
    "two optimizers": (Rhythm(), {}),
    "phases, accumulated": (Phased(), {"micro_batch": 3}),
}


class Ringing:
    """Data that raises a signal while batch `number` is read: in the middle of a step."""

    def __init__(self, number, *signals):
        self.inner, self.number, self.signals = data(), number, signals
        self.fingerprint = self.inner.fingerprint

    def __call__(self, number, rows, draws):
        if number == self.number:
            self.number = None
            for one in self.signals:
                signal.raise_signal(one)
        return self.inner(number, rows, draws)

    def ids(self, number, rows):
        return self.inner.ids(number, rows)


@pytest.fixture
def handlers():
    """Without the trainer's own handlers a signal must fail the test, not end pytest."""

    def unexpected(number, frame):
        raise AssertionError(f"signal {number} was not handled by the trainer")

    before = {s: signal.signal(s, unexpected) for s in (signal.SIGTERM, signal.SIGINT)}
    yield unexpected
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def whole():
    """The final states of the runs that nothing interrupted."""
    found = {}
    for name, (method, changes) in SCENARIOS.items():
        one = trainer(method, None, config(**changes))
        one.fit()
        found[name] = state(one)
    return found


@pytest.mark.parametrize("step", range(1, STEPS))
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_run_cut_at_any_step_ends_with_the_same_bits(folder, whole, name, step):
    method, changes = SCENARIOS[name]
    cut(method, folder, step, **changes)
    again = trainer(method, folder, config(**changes))
    again.fit()
    assert_same(state(again), whole[name])
    assert [line["step"] for line in read_log(folder / "log.jsonl")] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_signal_in_the_middle_of_any_step_ends_the_run_behind_it(folder, whole, handlers, step):
    number = 3 * (step - 1) + 1  # the second of the step's three batches
    one = trainer(Rhythm(), folder, stream=Ringing(number, signal.SIGTERM))
    with pytest.raises(SystemExit) as error:
        one.fit()
    assert error.value.code == 128 + signal.SIGTERM
    assert one.batches == 3 * step
    assert [p.name for p in (folder / "checkpoints").iterdir()] == [f"step-{step:08d}"]
    assert json.loads((folder / "status.json").read_text())["state"] == "stopped"
    again = trainer(Rhythm(), folder)
    again.fit()
    assert_same(state(again), whole["two optimizers"])


def test_the_scenario_crosses_the_end_of_an_epoch_inside_a_batch():
    # Otherwise the tests above would say less than they seem to: 20 images, batches of 8.
    ids = data().ids(2, range(8))
    assert len(ids) == 8
    assert torch.equal(ids[:4], data().ids(0, range(20))[16:])
    assert sorted(data().ids(0, range(20)).tolist()) == list(range(20))
    assert sorted(data().ids(0, range(40))[20:].tolist()) == list(range(20))


def test_an_interrupt_gives_130_and_the_old_handlers_return(folder, handlers):
    with pytest.raises(SystemExit) as error:
        trainer(Single(), folder, stream=Ringing(4, signal.SIGINT)).fit()
    assert error.value.code == 130
    assert signal.getsignal(signal.SIGINT) is handlers
    assert signal.getsignal(signal.SIGTERM) is handlers


def test_a_second_signal_ends_the_run_at_once(folder, handlers):
    with pytest.raises(SystemExit) as error:
        trainer(Single(), folder, stream=Ringing(4, signal.SIGINT, signal.SIGTERM)).fit()
    assert error.value.code == 143
    assert list((folder / "checkpoints").iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is handlers


def test_a_signal_in_the_last_step_lets_the_run_finish(folder, whole, handlers):
    one = trainer(Single(), folder, stream=Ringing(STEPS - 1, signal.SIGTERM))
    one.fit()
    assert_same(state(one), whole["single"])
    assert json.loads((folder / "status.json").read_text())["state"] == "trained"


@pytest.mark.parametrize("log_every", [1, 50])
def test_a_signal_between_two_steps_loses_nothing(folder, handlers, log_every):
    """It may come while samples are drawn, or while the log waits for the device."""
    one = trainer(Single(), folder, config(log_every=log_every))

    def ring(seen):
        if seen.done == 5:
            signal.raise_signal(signal.SIGTERM)

    looks = {"measures": [ring]} if log_every == 1 else {}
    with pytest.raises(SystemExit) as error:
        one.fit(*([] if looks else [ring]), **looks)
    assert error.value.code == 143
    store = Checkpoints(folder / "checkpoints")
    step = store.newest()
    assert step is not None, "the run ended without a checkpoint"
    assert store.load(step).facts["batches"] == one.batches


def test_a_finished_run_is_left_as_it_is(folder, whole):
    trainer(Rhythm(), folder).fit()
    before = {
        p: p.read_bytes() for p in folder.rglob("*.*") if p.is_file() and p.name != "status.json"
    }
    again = trainer(Rhythm(), folder)
    again.fit()
    assert_same(state(again), whole["two optimizers"])
    assert {
        p: p.read_bytes() for p in folder.rglob("*.*") if p.is_file() and p.name != "status.json"
    } == before


@pytest.mark.parametrize(
    "spec", [RAdam(lr=1e-2), Sgd(lr=1e-2), AdamW(lr=1e-3)], ids=lambda s: type(s).__name__
)
def test_every_optimizer_resumes(folder, spec):
    specs = {"optimizer": spec, "optimizers": {"fake": AdamW(lr=3e-3, beta1=0.0)}}
    straight = trainer(Rhythm(), None, config(**specs))
    straight.fit()
    cut(Rhythm(), folder, 7, **specs)
    again = trainer(Rhythm(), folder, config(**specs))
    again.fit()
    assert_same(state(again), state(straight))


def test_skipped_steps_are_remembered(folder):
    method = Single(poison=(1, 6))
    cut(method, folder, 4)
    again = trainer(method, folder)
    again.fit()
    assert again.skips.flags.nonzero()[:, 0].tolist() == [1, 6]
    straight = trainer(method)
    straight.fit()
    assert_same(state(again), state(straight))


@pytest.mark.parametrize("stop", [0, 3, 4, 5])
def test_at_a_phase_optimizer_and_averages_start_anew_exactly_once(folder, stop):
    """Phases begin at steps 0, 4 and 8; a stop at 4 saves the state from before the border."""
    if stop:
        cut(Phased(), folder, stop)
    one = trainer(Phased(), folder)
    counts, starts = [], []
    make = one.state.restart

    def noted():
        make()
        starts.append(one.state.optimizers["student"].state_dict()["state"])

    def look(seen):
        counts.append(
            (
                seen.done,
                *(int(o.state_dict()["state"][0]["step"]) for o in one.state.optimizers.values()),
            )
        )
        if seen.done in (5, 9):  # one step behind a border nothing from before it is left
            found = state(one)
            for key, value in part(found, "net/student").items():
                average = found[key.replace("net/student", "ema/student/0.9")]
                assert torch.equal(average, value), key

    one.state.restart = noted
    one.fit(look)
    since = range(stop + 1, STEPS + 1)
    assert counts == [(done, (done - 1) % 4 + 1, 2 * ((done - 1) % 4 + 1)) for done in since]
    assert starts == [
        {} for border in (4, 8) if border >= stop
    ]  # empty optimizers, once per border


@pytest.mark.parametrize("micro", [8, 12])
@pytest.mark.parametrize(
    "method", [Single(dropout=0.0), Rhythm(dropout=0.0)], ids=["single", "two optimizers"]
)
def test_accumulation_changes_nothing_but_rounding(method, micro):
    # Plain descent: Adam's first steps are signs of the gradient, and would blow rounding up.
    chosen = {"steps": 5, "batch": 32, "optimizer": Sgd(lr=0.1), "clip": 0.5}
    ends = []
    for size in (0, micro):
        one = trainer(method, None, config(micro_batch=size, **chosen))
        one.fit()
        ends.append(state(one))
    assert ends[0].keys() == ends[1].keys()
    for key in ends[0]:
        torch.testing.assert_close(ends[1][key], ends[0][key], rtol=0, atol=1e-6)
    begun = state(trainer(method, None, config(**chosen)))
    moved = max((ends[0][key] - begun[key]).abs().max() for key in part(begun, "net/student"))
    assert moved > 0.01  # a thousand times the tolerance: the run did something


def test_micro_batch_may_change_in_a_resumed_run(folder):
    method, chosen = Single(dropout=0.0), {"optimizer": Sgd(lr=0.1)}
    straight = trainer(method, None, config(**chosen))
    straight.fit()
    cut(method, folder, 5, **chosen)
    again = trainer(method, folder, config(micro_batch=2, **chosen))
    again.fit()
    for key, value in state(straight).items():
        torch.testing.assert_close(state(again)[key], value, rtol=0, atol=1e-6)


def tiny_run(**changes):
    """A whole run: a U-Net of a few thousand weights on 20 digits."""
    network = UNet(channels=8, multipliers=(1,), blocks=1, attention=(), head_channels=8, groups=4)
    chosen = {
        "steps": 2,
        "batch": 8,
        "optimizer": AdamW(lr=1e-3),
        "device": "cpu",
        "save_every": 2,
        "health_every": 0,
    }
    return Run(
        Digits(split="all", limit=20),
        Diffusion(),
        Fresh(network=network),
        trainer=TrainerConfig(**{**chosen, **changes}),
    )


def test_a_restart_that_was_cut_is_not_taken_for_the_run_before_it(folder):
    assert not distil(tiny_run(), folder).already
    assert distil(tiny_run(), folder).already
    other = tiny_run(seed=5)
    with pytest.raises(StopError):
        distil(other, folder, restart=True, observers=[stop_at(1)])
    assert not distil(other, folder).already, (
        "the weights of the old run were taken for those of the new one"
    )
    card = json.loads((folder / "student" / "model.json").read_text())["card"]
    assert card["trainer"]["seed"] == 5


def test_a_method_on_real_networks_resumes(folder):
    method = ConsistencyDistillation(bins=4, times=Karras(end="t_min"))
    run = Run(
        tiny_run().data,
        method,
        tiny_run().teacher,
        dropout=0.2,
        trainer=TrainerConfig(
            steps=6,
            batch=8,
            micro_batch=4,
            ema=(0.9, 0.5),
            device="cpu",
            save_every=2,
            health_every=0,
            schedule=Constant(warmup=3),
            optimizer=RAdam(lr=1e-3),
        ),
    )
    distil(run, folder / "straight")
    with pytest.raises(StopError):
        distil(run, folder / "cut", observers=[stop_at(3)])
    distil(run, folder / "cut")
    for file in ("student/model.safetensors", "student/model-0.5.safetensors", "log.jsonl"):
        assert (folder / "cut" / file).read_bytes() == (folder / "straight" / file).read_bytes(), (
            file
        )
    last = Path("checkpoints", "step-00000006")
    for file in ("nets.safetensors", "ema.safetensors", "optim.safetensors"):
        assert (folder / "cut" / last / file).read_bytes() == (
            folder / "straight" / last / file
        ).read_bytes(), file
