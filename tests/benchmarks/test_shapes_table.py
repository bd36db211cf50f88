"""The benchmark of drawn shapes: what it measures, writes and leaves alone, in small."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from fewstep.cli.configure import configured

pytest.importorskip("diffusers")
pytest.importorskip("peft")

PATH = Path(__file__).parents[2] / "benchmarks" / "shapes.py"
SMALL = ("trainer.steps=2", "trainer.batch=2", "trainer.health_every=0", "data.num=200")
KEYS = {
    *("tier", "method", "adapter", "solver", "steps", "evaluations", "guidance", "chosen"),
    *("caption_accuracy", "frechet", "frechet_to_teacher", "diversity", "seed"),
    "seconds_per_image",
}


@pytest.fixture
def bench(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("shapes_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    monkeypatch.syspath_prepend(str(PATH.parent))
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "NUM", 6)
    monkeypatch.setattr(module, "STEPS", (4, 2))
    monkeypatch.setattr(module, "RESULTS", tmp_path / "shapes.json")
    monkeypatch.setattr(module, "PAGE", tmp_path / "shapes.md")
    page = "# Page\n<!-- table -->\nold\n<!-- end of table -->\nbelow\n"
    (tmp_path / "shapes.md").write_text(page, encoding="utf-8")
    monkeypatch.setattr(
        module, "configured", lambda name, words: configured(name, [*words, *SMALL])
    )
    return module


def told(bench, monkeypatch, *words):
    """The lines of its file behind one call."""
    folder = bench.RESULTS.parent / "runs"
    monkeypatch.setattr(sys, "argv", ["shapes.py", "--runs", str(folder), *words])
    bench.main()
    return json.loads(bench.RESULTS.read_text(encoding="utf-8"))


def rows_of(lines, method):
    return [
        (line["guidance"], line["solver"], line["steps"], line["evaluations"], line["chosen"])
        for line in lines
        if line["method"] == method
    ]


def test_rows_are_measured_once_and_the_page_is_of_the_file(bench, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        told(bench, monkeypatch, "--rows", "cd", "--seeds", "0")
    assert "no lines of the teacher yet" in capsys.readouterr().err
    monkeypatch.setattr(bench, "SCALES", (3.0,))
    (data,) = told(bench, monkeypatch, "--rows", "data", "--seeds", "0")
    assert set(data) == KEYS
    assert data["caption_accuracy"] == 1
    bench.RESULTS.unlink()
    first = told(bench, monkeypatch, "--rows", "teacher", "--seeds", "0")
    assert rows_of(first, "teacher") == [
        *[(3.0, "ddim", 50, 100, True)],
        *[(3.0, "dpmpp_2m", n, 2 * n, True) for n in (20, 16, 8)],
        *[(3.0, "ddim", n, 2 * n, True) for n in (4, 2)],
    ]
    assert all(set(line) == KEYS for line in first)
    assert first[0]["caption_accuracy"] > 0.8  # at 50 steps, of 6
    assert first[-1]["frechet_to_teacher"] > 0
    teacher = bench.RESULTS.parent / "runs" / "teacher-one.npz"
    made = teacher.stat().st_mtime_ns

    # A scale more, of a file from which a line was lost: the others stay as they are.
    monkeypatch.setattr(bench, "SCALES", (1.0, 3.0))
    bench.RESULTS.write_text(json.dumps(first[:-1]), encoding="utf-8")
    second = told(bench, monkeypatch, "--rows", "teacher", "--seeds", "0")
    assert second[: len(first) - 1] == first[:-1]
    assert rows_of(second[len(first) - 1 :], "teacher") == [
        *[(1.0, "ddim", 50, 50, False)],
        *[(1.0, "dpmpp_2m", n, n, False) for n in (20, 16, 8)],
        *[(1.0, "ddim", n, n, False) for n in (4, 2)],
        (3.0, "ddim", 2, 4, True),
    ]

    # One that serves all numbers of steps, and one that is trained for each.
    third = told(bench, monkeypatch, "--rows", "cd,mbcd_lora", "--seeds", "0")
    assert third[: len(second)] == second
    for name, adapter in (("cd", "full"), ("mbcd_lora", "lora")):
        assert [row[2:] for row in rows_of(third, name)] == [(n, n, True) for n in (4, 2)]
        mine = [line for line in third if line["method"] == name]
        assert {line["adapter"] for line in mine} == {adapter}
        assert {line["guidance"] for line in mine} == {3.0}
        assert set(mine[0]) == KEYS | {"teacher", "minutes"}
        fifty = next(line for line in first if line["steps"] == 50)
        assert mine[0]["teacher"]["50"]["frechet"] == fifty["frechet"]
    folders = {path.name for path in (bench.RESULTS.parent / "runs").iterdir() if path.is_dir()}
    assert folders == {
        "cd-one-4-2-seed0",
        *(f"mbcd_lora-one-{n}-seed0" for n in (4, 2)),
    }

    assert told(bench, monkeypatch, "--rows", "cd,mbcd_lora", "--seeds", "0") == third
    assert teacher.stat().st_mtime_ns == made
    page = bench.PAGE.read_text(encoding="utf-8")
    assert page.startswith("# Page\n")
    assert page.endswith("below\n")
    assert "old" not in page
    assert page.count("| one | `cd`") == 2
