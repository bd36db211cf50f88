"""Plans: what is linear is linear, what is counted is counted, and a real step needs what its plan
says.
"""

import itertools

import pytest
import torch
from tests.training import tiny
from torch.profiler import ProfilerActivity, profile

from fewstep.choice import replaced
from fewstep.data.dataset import held_images
from fewstep.data.digits import Digits
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.methods.diffusion import Diffusion
from fewstep.methods.dmd2 import DMD2
from fewstep.methods.truncated_consistency import TruncatedConsistency
from fewstep.models.dit import Dit
from fewstep.models.network import ConditionedModule
from fewstep.models.source import Fresh
from fewstep.models.space import image_space
from fewstep.models.unet import UNet
from fewstep.run import Run
from fewstep.training import plan
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW, RAdam, Sgd
from fewstep.training.plan import Meter, Trial, peaks, planned

SMALL = UNet(channels=16, multipliers=(1, 2), blocks=1, attention=(2,), head_channels=16, groups=8)
SHAPE = (1, 8, 8)


def prepared(method, config, network=SMALL):
    """A run on random images."""
    model = Fresh(network=network).load(image_space(SHAPE, 10), 0)
    images = torch.randint(256, (8, *SHAPE), dtype=torch.uint8)
    dataset = held_images(images, torch.arange(8), 10, torch.arange(8))
    config = replaced(config, precision=plan.planned_precision(config))
    return Run(Digits(), method, trainer=config).prepared(dataset, model=model)


def plan_of(method=None, processes=1, health_rows=0, network=SMALL, **options):
    method = method or Diffusion()
    config = TrainerConfig(**{"batch": 16, "device": "cpu", "health_every": 0, **options})
    ready = prepared(method, config, network)
    loaded = {"as loaded": [] if "teacher" in vars(ready.nets) else [ready.model.denoiser]}
    return planned(ready.trainer, processes, health_rows, loaded)


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    """No time for more rows than the first two trials have."""
    monkeypatch.setattr(plan, "BUDGET", 0.0)


def test_twice_the_batch_needs_twice_the_activations():
    small, large = plan_of(batch=16), plan_of(batch=32)
    assert large.passing["activations"] == pytest.approx(2 * small.passing["activations"], rel=0.02)
    assert large.held == small.held


def test_weights_averages_and_optimizer_states_are_counted_exactly():
    one, three = plan_of(ema=(0.9,)), plan_of(ema=(0.9, 0.99, 0.999))
    weights, tensors = (
        one.held["student"],
        len(list(prepared(Diffusion(), TrainerConfig()).nets.student.parameters())),
    )
    assert one.held["student: optimizer"] == 2 * weights + 4 * tensors  # and a step count each
    assert (
        one.held["student: averages"]
        == weights
        == one.held["as loaded"]
        == one.passing["gradients"]
    )
    assert three.held["student: averages"] == 3 * weights
    assert three.peak - one.peak == 2 * weights
    assert three.student == 3 * one.student == 3 * weights
    assert one.checkpoint == 4 * weights + 4 * tensors


def test_optimizers_differ():
    adam, radam, plain = (plan_of(optimizer=spec) for spec in (AdamW(), RAdam(), Sgd()))
    assert "student: optimizer" not in plain.held
    assert radam.held["student: optimizer"] == adam.held["student: optimizer"]
    assert (
        radam.passing["optimizer's work"]
        > 3 * adam.held["student"]
        > adam.passing["optimizer's work"]
    )


@pytest.mark.parametrize("network", [SMALL, Dit(width=24, depth=4, heads=2)], ids=["unet", "dit"])
def test_checkpointing_needs_less(network):
    plain, frugal = (plan_of(network=network, checkpointing=on) for on in (False, True))
    assert frugal.passing["activations"] < 0.75 * plain.passing["activations"]
    assert frugal.held == plain.held


def test_micro_batches_need_the_activations_of_their_rows():
    whole, half, cut = plan_of(batch=32), plan_of(batch=16), plan_of(batch=32, micro_batch=16)
    assert cut.passing["activations"] == half.passing["activations"] < whole.passing["activations"]
    assert (cut.rows, cut.share) == (16, 32)
    assert half.peak < cut.peak < whole.peak  # the second pass finds the gradients of the first


def test_bf16_halves_what_is_frozen_and_needs_less():
    method = ConsistencyDistillation()
    full, half = (plan_of(method, precision=precision) for precision in ("fp32", "bf16"))
    assert half.held["teacher"] == full.held["teacher"] / 2
    assert half.held["student"] == full.held["student"]
    assert half.passing["activations"] < 0.8 * full.passing["activations"]


def test_fp16_is_planned_as_bf16_where_only_a_cpu_is():
    assert plan_of(precision="fp16").precision == "bf16"
    assert plan_of(precision="fp16_teacher").precision == "fp32"


def test_processes_share_the_batch_and_with_sharding_the_networks():
    alone, four, sharded = (
        plan_of(batch=64),
        plan_of(batch=64, processes=4),
        plan_of(processes=4, sharding="full"),
    )
    assert four.passing["activations"] == plan_of(batch=16).passing["activations"]
    assert four.held == alone.held
    assert sharded.held == {role: size // 4 for role, size in alone.held.items()}
    assert sharded.passing["gradients"] == alone.passing["gradients"] // 4


def test_each_network_of_a_method_has_its_role():
    held = plan_of(DMD2(fake_steps=2), batch=4).held
    assert {"student", "fake", "head", "teacher", "fake: optimizer", "head: optimizer"} <= set(held)
    assert "teacher: optimizer" not in held
    assert "fake: averages" not in held
    assert plan_of(ConsistencyDistillation(), batch=4).held["target"] == held["student"]


def test_every_update_of_a_step_takes_time(monkeypatch):
    """With a clock that goes on by a second whenever it is read: pass and step take one each, on 3
    of 4 rows.
    """
    clock = itertools.count()
    monkeypatch.setattr(plan, "_now", lambda _: float(next(clock)))
    for fakes in (1, 9):
        assert plan_of(DMD2(fake_steps=fakes), batch=4).step == pytest.approx(
            (fakes + 1) * (4 / 3 + 1) + 1
        )


@pytest.mark.parametrize(("steps", "rows"), [(10, 10.0), (4, 10.0), (5, 10.4)])
def test_phases_are_weighed_by_their_length(monkeypatch, steps, rows):
    """In units of evaluated rows: the first stage takes two of each of 4, the second three."""
    seen = [0]
    monkeypatch.setattr(plan, "_now", lambda _: float(seen[0]))

    def note(module, inputs):
        seen[0] += len(inputs[0]) * isinstance(module, ConditionedModule)

    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        assert plan_of(TruncatedConsistency(share=0.5), batch=4, steps=steps).step == pytest.approx(
            rows
        )
    finally:
        hook.remove()


def test_health_can_be_what_needs_most():
    without, little, much = (
        plan_of(health_every=every, health_rows=rows) for every, rows in ((0, 0), (1, 8), (1, 2048))
    )
    assert without.peak == little.peak < much.peak
    assert "health" not in without.passing
    assert much.peak == sum(much.held.values()) + much.passing["health"]


def test_a_few_rows_tell_of_many(monkeypatch):
    guessed = plan_of(batch=64)
    assert guessed.tried == plan.FIRST + 1
    monkeypatch.setattr(plan, "BUDGET", 60.0)
    known = plan_of(batch=64)
    assert known.tried == 64
    assert guessed.peak == pytest.approx(known.peak, rel=0.01)
    assert guessed.passing["activations"] == pytest.approx(known.passing["activations"], rel=0.01)


def test_the_peak_may_move():
    """At 2 and 3 rows the gradients at the end are most, at 10 the activations at the beginning."""
    small, large = (
        Trial(rows, torch.tensor([[10.0 * rows, 50.0], [10.0 * rows, 0.0]])) for rows in (2, 3)
    )
    assert peaks(small, large, 3) == [50, 30]
    assert peaks(small, large, 10) == [100, 100]


def test_work_that_depends_on_the_rows_is_planned_by_its_peaks():
    small, large = (
        Trial(1, torch.tensor([[4.0, 6.0]] * 2)),
        Trial(2, torch.tensor([[4.0, 6.0, 7.0]] * 2)),
    )
    assert peaks(small, large, 4) == [9, 9]


def test_the_meter_sees_what_is_made_and_what_goes():
    given = torch.zeros(100)
    with Meter() as meter:
        kept = given + 1  # 400 bytes
        view = kept[:50]
        gone = torch.cat([kept, kept])  # 800 bytes
        del gone
        given.add_(view.sum())  # 4 bytes
    line, passing = meter.lines()
    assert line.max() == 1200
    assert passing.max() == 800
    assert line[-1] in (400, 404)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "method",
    [Diffusion(), ConsistencyDistillation(), DMD2(fake_steps=1)],
    ids=lambda m: type(m).__name__,
)
def test_a_real_step_needs_what_its_plan_says(method, precision):
    """Against every byte that PyTorch's allocator gives, from the first network to the third
    step.
    """
    config = TrainerConfig(
        batch=24, precision=precision, device="cpu", health_every=0, log_every=100, steps=100
    )

    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
        pytest.raises(tiny.StopError),
    ):
        prepared(method, config).trainer.fit(tiny.stop_at(3))
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    line = torch.tensor([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).cumsum(0)
    ready = prepared(method, config)
    said = planned(ready.trainer, 1, 0, {"as loaded": [ready.model.denoiser]})
    assert said.tried == 3
    assert said.peak == pytest.approx(line.max().item(), rel=0.1)


def test_methods_that_nobody_knows_are_planned():
    """A method of the tests' own, with two networks that learn and one that moves."""
    said = planned(tiny.trainer(tiny.Rhythm()), 1, 0, {})
    assert {"student", "fake", "target", "student: averages", "fake: optimizer"} <= set(said.held)
    assert said.step > 0


def test_a_batch_of_one_can_be_planned():
    assert plan_of(batch=1).tried == 1
