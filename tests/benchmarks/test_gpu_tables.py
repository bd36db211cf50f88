"""The tables of a GPU's report: of the committed one, and of made-up entries."""

import json
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).parents[2]
RESULTS = HOME / "docs" / "results"
NAMES = ("gpu", "gpu_checks", "gpu_figures", "gpu_tables", "lora", "step")


@pytest.fixture(scope="module")
def gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HOME / "benchmarks"))
        import gpu

        yield gpu
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def made(gpu):
    return sys.modules["gpu_tables"]


def rows_of(made, report, heading):
    """The cells of one table of a report's."""
    facts = dict.fromkeys(("device", "date", "torch", "python", "commit"), "x")
    text = made.tables({**facts, "cuda": None, "left_out": [], **report})
    table = text.split(f"### {heading}\n\n")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def check(name, passed=True, value=0.0, limit=1e-3):
    return {"name": name, "passed": passed, "value": value, "limit": limit}


def test_the_page_shows_the_committed_report(gpu, capsys):
    """What stands below the last heading of the page is what the command prints."""
    assert gpu.main(["--show", str(RESULTS / "gpu.json")]) == 0
    page = (RESULTS / "gpu.md").read_text(encoding="utf-8")
    assert page.split("## NVIDIA H200\n\n")[1] == capsys.readouterr().out


def test_every_check_of_the_committed_report_is_in_a_row(made):
    report = json.loads((RESULTS / "gpu.json").read_text(encoding="utf-8"))
    rows = rows_of(made, report, "Checks")
    assert sum(int(row[1].split(" of ")[1]) for row in rows) == len(report["checks"])
    assert sum(int(row[1].split(" of ")[0]) for row in rows) == len(report["checks"])


def test_what_did_not_pass_is_counted_and_the_worst_value_shown(made):
    broken = {"name": "loss.c", "passed": False, "error": "RuntimeError: made up"}
    entries = [check("loss.a", value=2e-6), check("loss.b", False, 0.25), broken]
    assert [row[1:] for row in rows_of(made, {"checks": entries}, "Checks")] == [
        ["1 of 3", "0.25", "0.001"]
    ]


def test_a_refused_precision_and_the_setting_of_a_resumed_run_are_named(made):
    refused = check("step.fp16.a", value={"refused": "no fp16"}, limit="finite")
    tried = {"nothing": {"tensors that differ": 3}, "cudnn": {"tensors that differ": 0}}
    resumed = check("resume.a", value={"enough": "cudnn", "tried": tried}, limit=0)
    rows = rows_of(made, {"checks": [refused, resumed]}, "Checks")
    assert [row[1:] for row in rows] == [
        ["1 of 1", "finite, 1 refused", "finite"],
        ["1 of 1", "0, with cudnn", "0"],
    ]


def test_a_compiled_step_stands_below_the_same_step_as_it_is(made):
    timed = {"precision": "bf16", "busy_s": 0.01, "launches": 7, "images_per_s": 1234.5}
    steps = [
        {"name": "a", "step": "edm", "batch": 8, "compiled": False, "s": 0.03, **timed},
        {"name": "b", "step": "edm", "batch": 9, "compiled": False, "s": 0.03, **timed},
        {"name": "c", "step": "edm", "batch": 8, "compiled": True, "s": 0.02, **timed},
        {"name": "d", "error": "RuntimeError: made up"},
    ]
    rows = rows_of(made, {"figures": steps}, "A step with torch.compile and without")
    assert [row[1:6] for row in rows] == [
        ["8", "bf16", "no", "30.0", "10.0"],
        ["8", "bf16", "yes", "20.0", "10.0"],
    ]
    rows = rows_of(made, {"figures": steps}, "Training steps, bf16")
    assert [row[:2] for row in rows] == [["edm", "8"], ["edm", "9"]]
    facts = dict.fromkeys(("device", "date", "torch", "python", "commit"), "x")
    text = made.tables({**facts, "cuda": None, "left_out": [], "figures": steps})
    assert text.endswith("d: RuntimeError: made up")


def test_the_memory_of_a_lora_stands_by_role(made):
    """A role that one precision lacks is an empty cell."""
    timed = {"busy_s": 0.2, "launches": 9, "images_per_s": 8.0, "s": 0.5, "side": 512, "batch": 4}
    timed["recipe"] = "a"
    figures = [
        {
            "recipe": "a",
            "precision": "fp16",
            **timed,
            "peak_mib": 9000.0,
            "held": {"student": 256.0},
        },
        {"recipe": "a", "precision": "bf16", **timed, "held": {"student": 256.0, "target": 25.0}},
    ]
    heading = f"A LoRA's step on Stable Diffusion 1.5{made.BAR}"
    assert rows_of(made, {"figures": figures}, heading) == [
        ["a", "fp16", "512", "4", "500.0", "200.0", "9", "8.00", "9,000", "256", ""],
        ["a", "bf16", "512", "4", "500.0", "200.0", "9", "8.00", "", "256", "25.0"],
    ]


def test_numbers_have_three_digits_and_shares_a_tenth_of_a_percent(made):
    found = [made.number(value) for value in (1234.5, 713.9, 24.64, 3.456, 0, None)]
    assert found == ["1,234", "714", "24.6", "3.46", "0", ""]
    assert [made.percent(v) for v in (0.0534, 0.0023, None)] == ["5.3 %", "0.23 %", ""]
