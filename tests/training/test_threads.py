"""With how many threads a run computes, and that to look for it changes nothing."""

import json

import pytest
import torch

from fewstep.data.digits import Digits
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.models.folder import load
from fewstep.models.source import Saved
from fewstep.run import Run, distil
from fewstep.training import threads
from fewstep.training.config import TrainerConfig
from fewstep.training.threads import waits


def run_of(**options):
    config = TrainerConfig(steps=2, batch=16, health_every=0, device="cpu", ema=(0.5,), **options)
    return Run(
        Digits(limit=64), ConsistencyDistillation(bins=4), Saved("digits_teacher"), trainer=config
    )


@pytest.fixture(autouse=True)
def _nobody_chose(monkeypatch):
    """Four threads, as on a machine where nobody says a number."""
    for name in threads.SET:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def distilled(tmp_path):
    """Carries out a run; what was said, and the threads of its steps."""

    def call(name="x", **options):
        said, seen = [], []

        def look(now):
            seen.append(torch.get_num_threads())

        distil(
            run_of(**options), tmp_path / name, observers=[look], progress=False, say=said.append
        )
        return said, seen

    return call


def measured(monkeypatch, seconds, stuck=()):
    """Passes that take so many seconds, by the number of threads, and numbers that wait."""
    tried = []

    def pass_of(trainer, number):
        tried.append(number)
        return seconds[number]

    monkeypatch.setattr(threads, "_seconds", pass_of)
    monkeypatch.setattr(threads, "waits", lambda number: number in stuck)
    return tried


@pytest.mark.parametrize(
    ("seconds", "stuck", "best", "tried"),
    [
        ({1: 1.0, 4: 0.3}, (), 4, [1, 4]),
        ({1: 1.0, 2: 0.6, 4: 1.5}, (), 2, [1, 4, 2]),
        ({1: 1.0, 2: 1.2, 4: 9.0}, (), 1, [1, 4, 2]),
        ({1: 1.0, 2: 0.7}, (4,), 2, [1, 2]),
        ({1: 1.0}, (2, 4), 1, [1]),
        ({1: 1.0, 2: 1.1, 4: 0.95}, (), 4, [1, 4, 2]),  # no difference to be trusted
    ],
)
def test_the_fastest_number_is_taken(monkeypatch, tmp_path, distilled, seconds, stuck, best, tried):
    asked = measured(monkeypatch, seconds, stuck)
    said, seen = distilled()
    assert asked == tried
    assert seen == [best, best]
    told = f"{best} of 4 threads: more wait for other work on this machine"
    assert (told if best < 4 else "4 threads, all that there are") in said
    assert torch.get_num_threads() == 4  # as before
    assert json.loads((tmp_path / "x" / "status.json").read_text())["threads"] == best


def test_a_number_that_was_asked_for(distilled):
    said, seen = distilled(threads=3)
    assert seen == [3, 3]
    assert not any("threads:" in line for line in said)


def test_the_environment_says_it(monkeypatch, distilled):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    tried = measured(monkeypatch, {})
    assert distilled()[1] == [4, 4]
    assert tried == []


def test_a_run_that_goes_on_keeps_its_number(monkeypatch, tmp_path, distilled):
    measured(monkeypatch, {1: 1.0, 2: 0.6, 4: 1.5})

    def cut(seen):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distil(run_of(save_every=1), tmp_path / "x", observers=[cut], progress=False)
    tried = measured(monkeypatch, {1: 1.0, 4: 0.3})
    said, seen = distilled(save_every=1)
    assert tried == []
    assert seen == [2]
    assert not any("another setting" in line for line in said)


def test_to_measure_changes_nothing(monkeypatch, tmp_path, distilled):
    """To the bit: no weight, no average, no draw."""
    monkeypatch.setattr(threads, "waits", lambda number: True)
    assert distilled("found")[1] == [1, 1]
    assert distilled("asked", threads=1)[1] == [1, 1]
    found, asked = (
        load(tmp_path / name).denoiser.network.state_dict() for name in ("found", "asked")
    )
    assert all(torch.equal(found[name], asked[name]) for name in asked)
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("found", "asked")]
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    ("slower", "stuck", "tries"), [(3.0, False, threads.TRIES), (5.0, True, 33), (1000.0, True, 1)]
)
def test_threads_that_wait_are_seen(monkeypatch, slower, stuck, tries):
    """By the time of an operation, far above that with one; as soon as that is certain."""
    now, tried = [0.0], []

    class Numbers:
        def mul(self, number):
            count = torch.get_num_threads()
            tried.append(count)
            now[0] += 1.0 if count == 1 else slower

    monkeypatch.setattr(threads.torch, "zeros", lambda numbers: Numbers())
    monkeypatch.setattr(threads.time, "perf_counter", lambda: now[0])
    assert waits(4) == stuck
    assert tried == [1] * (1 + threads.TRIES) + [4] * (1 + tries)


@pytest.mark.parametrize(("stuck", "number"), [((), 4), ((4,), 2), ((4, 2), 1)])
def test_images_are_made_with_no_threads_that_wait(monkeypatch, stuck, number):
    monkeypatch.setattr(threads, "waits", lambda asked: asked in stuck)
    with threads.unhindered():
        assert torch.get_num_threads() == number
    assert torch.get_num_threads() == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with threads.unhindered():
        assert torch.get_num_threads() == 4
