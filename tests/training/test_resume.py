"""A run that is stopped at any step and goes on ends with the same bits as one that never stopped."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from fewstep.data.digits import Digits
from fewstep.diffusion.times import Karras
from fewstep.learning.schedules import Constant
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.methods.diffusion import Diffusion
from fewstep.models.source import Fresh
from fewstep.models.unet import UNet
from fewstep.run import Run, distil
from fewstep.training.checkpoint import Checkpoints
from fewstep.training.log import read_log
from fewstep.training.optimizers import AdamW, RAdam, Sgd
from fewstep.training.trainer import TrainerConfig
from tests.training.tiny import Phased, Rhythm, Single, assert_same, config, data, part, state, trainer

STEPS = 12
METHODS = {"single": Single(), "two optimizers": Rhythm(), "phases": Phased()}


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch):
    """Waiting for the disk matters only when the power fails."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class StopError(Exception):
    pass


def stop_at(step):
    def watch(done, values):
        if values is None and done == step:
            raise StopError

    return watch


def stopped(method, folder, step, **changes):
    """A run that was cut behind `step`, with a checkpoint of that step."""
    with pytest.raises(StopError):
        trainer(method, folder, config(save_every=step, **changes)).fit(stop_at(step))


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
    """The final states of the runs that nothing interrupted; micro_batch=3 leaves a last part of 2 rows."""
    found = {}
    for name, method in METHODS.items():
        for micro in (0, 3):
            one = trainer(method, None, config(micro_batch=micro))
            one.fit()
            found[name, micro] = state(one)
    return found


@pytest.mark.parametrize("step", range(1, STEPS))
@pytest.mark.parametrize("micro", [0, 3])
@pytest.mark.parametrize("name", METHODS)
def test_a_run_cut_at_any_step_ends_with_the_same_bits(tmp_path, whole, name, micro, step):
    stopped(METHODS[name], tmp_path, step, micro_batch=micro)
    again = trainer(METHODS[name], tmp_path, config(micro_batch=micro))
    again.fit()
    assert_same(state(again), whole[name, micro])
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_signal_in_the_middle_of_any_step_ends_the_run_behind_it(tmp_path, whole, handlers, step):
    number = 3 * (step - 1) + 1  # the second of the step's three batches
    one = trainer(Phased(), tmp_path, stream=Ringing(number, signal.SIGTERM))
    with pytest.raises(SystemExit) as error:
        one.fit()
    assert error.value.code == 128 + signal.SIGTERM
    assert one.batches == 3 * step
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [f"step-{step:08d}"]
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "stopped"
    again = trainer(Phased(), tmp_path)
    again.fit()
    assert_same(state(again), whole["phases", 0])


def test_the_scenario_crosses_the_end_of_an_epoch_inside_a_batch():
    # Otherwise the tests above would say less than they seem to: 20 images, batches of 8.
    ids = data().ids(2, range(8))
    assert len(ids) == 8
    assert torch.equal(ids[:4], data().ids(0, range(20))[16:])
    assert sorted(data().ids(0, range(20)).tolist()) == list(range(20))
    assert sorted(data().ids(0, range(40))[20:].tolist()) == list(range(20))


def test_an_interrupt_gives_130_and_the_old_handlers_return(tmp_path, handlers):
    with pytest.raises(SystemExit) as error:
        trainer(Single(), tmp_path, stream=Ringing(4, signal.SIGINT)).fit()
    assert error.value.code == 130
    assert signal.getsignal(signal.SIGINT) is handlers
    assert signal.getsignal(signal.SIGTERM) is handlers


def test_a_second_signal_ends_the_run_at_once(tmp_path, handlers):
    with pytest.raises(SystemExit) as error:
        trainer(Single(), tmp_path, stream=Ringing(4, signal.SIGINT, signal.SIGTERM)).fit()
    assert error.value.code == 143
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is handlers


def test_a_signal_in_the_last_step_lets_the_run_finish(tmp_path, whole, handlers):
    one = trainer(Single(), tmp_path, stream=Ringing(STEPS - 1, signal.SIGTERM))
    one.fit()
    assert_same(state(one), whole["single", 0])
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "trained"


@pytest.mark.parametrize("log_every", [1, 50])
def test_a_signal_between_two_steps_loses_nothing(tmp_path, handlers, log_every):
    """It may come while samples are drawn for `watch`, or while the log waits for the device."""
    one = trainer(Single(), tmp_path, config(log_every=log_every))

    def watch(done, values):
        if done == 5 and (values is not None or log_every == 50):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as error:
        one.fit(watch)
    assert error.value.code == 143
    kept = Checkpoints(tmp_path / "checkpoints").newest()
    assert kept is not None, "the run ended without a checkpoint"
    assert kept.facts["batches"] == one.batches


def test_a_finished_run_is_left_as_it_is(tmp_path, whole):
    trainer(Rhythm(), tmp_path).fit()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.*") if p.is_file() and p.name != "status.json"}
    again = trainer(Rhythm(), tmp_path)
    again.fit()
    assert_same(state(again), whole["two optimizers", 0])
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.*") if p.is_file() and p.name != "status.json"} == before


@pytest.mark.parametrize("spec", [RAdam(lr=1e-2), Sgd(lr=1e-2), AdamW(lr=1e-3)], ids=lambda s: type(s).__name__)
def test_every_optimizer_resumes(tmp_path, spec):
    specs = {"optimizer": spec, "optimizers": {"fake": AdamW(lr=3e-3, beta1=0.0)}}
    straight = trainer(Rhythm(), None, config(**specs))
    straight.fit()
    stopped(Rhythm(), tmp_path, 7, **specs)
    again = trainer(Rhythm(), tmp_path, config(**specs))
    again.fit()
    assert_same(state(again), state(straight))


def test_skipped_steps_are_remembered(tmp_path):
    method = Single(poison=(1, 6))
    stopped(method, tmp_path, 4)
    again = trainer(method, tmp_path)
    again.fit()
    assert again.flags.nonzero()[:, 0].tolist() == [1, 6]
    straight = trainer(method)
    straight.fit()
    assert_same(state(again), state(straight))


@pytest.mark.parametrize("cut", [None, 3, 4, 5])
def test_at_a_phase_optimizer_and_averages_start_anew_exactly_once(tmp_path, cut):
    """Phases begin at steps 0, 4 and 8; cut = 4 saves the state from before the border."""
    if cut:
        stopped(Phased(), tmp_path, cut)
    one = trainer(Phased(), tmp_path)
    counts, starts, first = [], [], {}
    make = one._new_averages

    def noted():
        make()
        starts.append(one.optimizers["student"].state_dict()["state"])
        first["weights"] = part(state(one), "net/student")

    def watch(done, values):
        if values is None:
            counts.append((done, *(int(o.state_dict()["state"][0]["step"]) for o in one.optimizers.values())))
            if done in (5, 9):  # one step behind a border: (1 - decay) of the way from the weights at the border
                found = state(one)
                for key, began in first["weights"].items():
                    name = key.removeprefix("net/student/")
                    torch.testing.assert_close(
                        found[f"ema/student/0.9/{name}"], 0.9 * began + 0.1 * found[key], rtol=1e-6, atol=1e-7
                    )

    one._new_averages = noted
    one.fit(watch)
    since = range((cut or 0) + 1, STEPS + 1)
    assert counts == [(done, (done - 1) % 4 + 1, 2 * ((done - 1) % 4 + 1)) for done in since]
    assert starts == [{} for border in (4, 8) if border >= (cut or 0)]  # empty optimizers, once per border


@pytest.mark.parametrize("micro", [8, 12, 1])
@pytest.mark.parametrize("method", [Single(dropout=0.0), Rhythm(dropout=0.0)], ids=["single", "two optimizers"])
def test_accumulation_changes_nothing_but_rounding(method, micro):
    # Plain descent: Adam's first steps are signs of the gradient, and would blow rounding up.
    chosen = {"steps": 8, "batch": 32, "optimizer": Sgd(lr=0.1), "clip": 0.5}
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


def test_micro_batch_may_change_in_a_resumed_run(tmp_path):
    method, chosen = Single(dropout=0.0), {"optimizer": Sgd(lr=0.1)}
    straight = trainer(method, None, config(**chosen))
    straight.fit()
    stopped(method, tmp_path, 5, **chosen)
    again = trainer(method, tmp_path, config(micro_batch=2, **chosen))
    again.fit()
    for key, value in state(straight).items():
        torch.testing.assert_close(state(again)[key], value, rtol=0, atol=1e-6)


def tiny_run(**changes):
    """A whole run: a U-Net of a few thousand weights on 20 digits."""
    network = UNet(channels=8, multipliers=(1,), blocks=1, attention=(), head_channels=8, groups=4)
    chosen = {"steps": 4, "batch": 8, "optimizer": AdamW(lr=1e-3), "device": "cpu", "save_every": 2, "health_every": 0}
    return Run(
        Digits(split="all", limit=20),
        Diffusion(),
        Fresh(network=network),
        trainer=TrainerConfig(**{**chosen, **changes}),
    )


def test_a_restart_that_was_cut_is_not_taken_for_the_run_before_it(tmp_path):
    assert distil(tiny_run(), tmp_path)
    assert not distil(tiny_run(), tmp_path)
    other = tiny_run(seed=5)
    with pytest.raises(StopError):
        distil(other, tmp_path, restart=True, watch=stop_at(1))
    assert distil(other, tmp_path), "the weights of the old run were taken for those of the new one"
    card = json.loads((tmp_path / "student" / "model.json").read_text())["card"]
    assert card["trainer"]["seed"] == 5


def test_a_method_on_real_networks_resumes(tmp_path):
    method = ConsistencyDistillation(bins=4, times=Karras(end="t_min"))
    run = Run(
        tiny_run().data,
        method,
        tiny_run().teacher,
        dropout=0.2,
        trainer=TrainerConfig(
            steps=6, batch=8, micro_batch=4, ema=(0.9, 0.5), device="cpu", save_every=2, health_every=0,
            schedule=Constant(warmup=3), optimizer=RAdam(lr=1e-3),
        ),
    )  # fmt: skip
    assert distil(run, tmp_path / "straight")
    with pytest.raises(StopError):
        distil(run, tmp_path / "cut", watch=stop_at(3))
    assert distil(run, tmp_path / "cut")
    for file in ("student/model.safetensors", "student/model-0.5.safetensors", "log.jsonl"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "straight" / file).read_bytes(), file
    last = Path("checkpoints", "step-00000006")
    for file in ("nets.safetensors", "ema.safetensors", "optim.safetensors"):
        assert (tmp_path / "cut" / last / file).read_bytes() == (tmp_path / "straight" / last / file).read_bytes(), file
