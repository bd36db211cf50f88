"""The benchmark measures what it says: this network, these steps, these goals."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fewstep.diffusion.conditioning import Cond
from fewstep.models.space import labelled
from fewstep.models.unet import UNet

FILE = Path(__file__).parent.parent.parent / "benchmarks" / "step.py"


@pytest.fixture(scope="module")
def step():
    found = importlib.util.spec_from_file_location("benchmark_of_steps", FILE)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_network_is_the_one_that_others_were_measured_on():
    with torch.device("meta"):
        network = UNet(channels=64, multipliers=(1, 2, 2), blocks=2).build(
            labelled((3, 32, 32), 10, True)
        )
        x, t, cond = (
            torch.zeros(16, 3, 32, 32),
            torch.ones(16),
            Cond({"label": torch.zeros(16, dtype=torch.long)}),
        )
    with FlopCounterMode(display=False) as counter:
        network(x, t, cond)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(7.66, abs=0.005)
    assert counter.get_total_flops() / 1e9 == pytest.approx(57.5, abs=0.05)


def test_the_plain_loop_does_the_trainers_work(step):
    """As many multiplications, and weights that move, in both."""
    flops = []
    for name in ("digits", "digits_bare"):
        work = step.work_of(name, "fp32")
        work()
        with FlopCounterMode(display=False) as counter:
            work()
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] > 1e9


def test_the_plain_loss_is_that_of_edm(step, monkeypatch):
    """With a network that says 0 it is 1 on data of the spread that EDM assumes, at all noise
    levels (table 1).
    """
    losses = []
    backward = torch.Tensor.backward
    monkeypatch.setattr(
        torch.Tensor, "backward", lambda self: losses.append(self.item()) or backward(self)
    )
    network = torch.nn.Conv2d(1, 1, 1)
    silent = torch.nn.Module()
    silent.conv, silent.forward = network, lambda x, t, cond, s: 0 * network(x)
    images = torch.where(torch.rand(64, 1, 32, 32) < 0.5, 64, 191).to(torch.uint8)  # -0.5 and 0.5
    step.bare(silent, images, torch.zeros(64, dtype=torch.long), 64, None)()
    assert losses == [pytest.approx(1, abs=0.1)]


def test_a_child_measures_and_ends(step):
    process = step.child(step.HOME, 1, "--serve", "digits_bare:fp32")
    assert step.answer(process)["digits_bare:fp32"] > 1e9
    first, second = (step.answer(process, "\n")["digits_bare:fp32"] for _ in range(2))
    process.communicate()
    assert process.returncode == 0
    assert 0 < first < 60
    assert 0 < second < 60


def test_memory_is_counted_in_a_process_of_its_own(step):
    process = step.child(step.HOME, 1, "--memory", "digits:bf16")
    found = step.answer(process)
    process.communicate()
    assert 12 < found["held"] < 14  # 0.83 M weights, an average, two states
    assert found["held"] + 20 < found["peak"] < found["grown"]


def test_the_report_names_what_was_missed(step, capsys):
    rows = {
        "forward:fp32": {"s": 1.0, "F": 1.0},
        "edm:fp32": {"s": 3.5, "F": 3.5, "of bare": 1.02, "peak": 5.0, "held": 1.0},
        "cd:fp32": {"s": 6.5, "F": 6.5, "peak": 300.0, "held": 100.0},
        "cd_graph:fp32": {"peak": 1100.0, "held": 100.0},
        "edm:bf16": {"s": 2.0, "F": 2.0, "of fp32": 0.5},
    }
    step.report(rows)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("missed")] == [
        "missed: edm:fp32 3.5 F, goal 3.4"
    ]
    assert {line.split()[1] for line in lines if line.startswith("met")} == {
        "cd:fp32",
        "cd_graph:fp32",
        "edm:fp32",
        "edm:bf16",
    }


@pytest.mark.parametrize(
    "words",
    [("--steps", "edm,nosuch"), ("--precision", "fp8"), ("--repeats", "many")],
    ids=lambda words: words[1],
)
def test_wrong_words_are_refused(step, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["step.py", *words])
    with pytest.raises(SystemExit) as ended:
        step.main()
    assert ended.value.code == 2
    assert words[1].split(",")[-1] in capsys.readouterr().err


def test_numbers_are_written_with_where_they_are_from(step, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(step, "measure", lambda options: {"edm:fp32": {"s": 1.0, "F": 3.0}})
    monkeypatch.setattr(
        sys, "argv", ["step.py", "--steps", "edm", "--out", str(tmp_path / "x.json")]
    )
    step.main()
    written = json.loads((tmp_path / "x.json").read_text())
    assert written["rows"] == {"edm:fp32": {"s": 1.0, "F": 3.0}}
    assert {"machine", "threads", "torch", "date", "command"} <= set(written)
    assert "met: edm:fp32 3 F" in capsys.readouterr().out
