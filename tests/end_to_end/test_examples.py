"""The examples, three steps each."""

import runpy
import sys
from pathlib import Path

import pytest
from tests.data.wnids import write_wnids
from tests.test_contracts import write_idx

from fewstep import load
from fewstep.training.log import read_log

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mnist", ["--steps", "3"]),
        ("imagenet9", ["--steps", "3", "--size", "16", "--channels", "32", "--batch", "4"]),
    ],
)
def test_an_example_trains_a_student(name, options, tmp_path, monkeypatch, capsys):
    write_idx(tmp_path) if name == "mnist" else write_wnids(tmp_path / "pictures")
    path = tmp_path if name == "mnist" else tmp_path / "pictures"
    monkeypatch.setattr(sys, "argv", [name, str(path), *options, "--out", str(tmp_path / "run")])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert [line["step"] for line in read_log(tmp_path / "run" / "log.jsonl")] == [1, 2, 3]
    grids = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert grids == ["step-00000003-2.png", "step-00000003-5.png"]
    model = load(str(tmp_path / "run"))
    times = model.sampler.times(model.denoiser.process, 5)
    assert times.tolist() == [80, 40, 20, 10, 5, 0.002]
    assert model.sampler.times(model.denoiser.process, 2).tolist() == [80, 2, 0.002]
    assert "grids: " in capsys.readouterr().out


def test_examples_are_short():
    assert all(len(path.read_text().splitlines()) <= 40 for path in EXAMPLES.glob("*.py"))
