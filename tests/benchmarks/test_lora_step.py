"""The benchmark of a LoRA's step, with 8 channels in the place of Stable Diffusion 1.5's."""

import json
import sys
from pathlib import Path

import pytest

from fewstep.training import plan

pytest.importorskip("diffusers")
pytest.importorskip("peft")


@pytest.fixture
def lora(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.setattr(plan, "BUDGET", 0.0)
    import lora

    yield lora
    for name in ("lora", "step"):
        sys.modules.pop(name, None)


def test_what_is_measured_is_what_was_foreseen(lora, monkeypatch, tmp_path, capsys):
    """Each role exactly, the peak of a pass about."""
    out = tmp_path / "lora.json"
    words = ["lora.py", "--small", "--side", "64", "--steps", "1", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(out)])
    lora.main()
    report = json.loads(out.read_text())
    found, said = report["measured"], report["foreseen"]
    assert found["held"] == said["held"]
    assert {"shared base", "student", "student: optimizer", "encoders"} <= set(said["held"])
    assert found["peak"] == pytest.approx(said["peak"], rel=0.1)
    assert (len(found["seconds"]), found["precision"]) == (1, "bf16")
    table = capsys.readouterr().out
    assert "| passing |" in table
    assert f"| **peak** | {found['peak'] / 2**20:,.0f} |" in table
