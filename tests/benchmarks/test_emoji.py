"""The benchmark of captioned pictures: all of it once, in small."""

import csv
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.cli.configure import configured

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("datasets")

PATH = Path(__file__).parents[2] / "benchmarks" / "emoji.py"
SMALL = ("trainer.steps=2", "trainer.batch=2", "trainer.health_every=0")
TONES = ("", "light skin tone", "dark skin tone")


@pytest.fixture
def pictures(tmp_path):
    """Things of one colour, each with and without a tone."""
    rows, rng = [], np.random.default_rng(0)
    for thing in ("hand", "ear", "nose", "foot", "fist"):
        for tone in TONES:
            name = f"{thing}-{tone}.png".replace(" ", "-")
            pixels = np.full((32, 32, 3), rng.integers(0, 256, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name)
            rows.append([name, f"{thing}, {tone}" if tone else thing, tone])
    with open(tmp_path / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file_name", "text", "tone"], *rows])
    return tmp_path


def test_five_trainings_a_table_and_a_grid(pictures, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("emoji_benchmark", PATH)
    bench = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(str(PATH.parent))
    spec.loader.exec_module(bench)
    out, runs = tmp_path / "out", tmp_path / "runs"
    out.mkdir()
    (out / "emoji.md").write_text("# Page\n<!-- table -->\nold\n<!-- end of table -->\nbelow\n")
    for name, end in (("RESULTS", "json"), ("PAGE", "md"), ("GRID", "png")):
        monkeypatch.setattr(bench, name, out / f"emoji.{end}")
    monkeypatch.setattr(bench, "NUM", 10)
    monkeypatch.setattr(bench, "PROMPTS", ("hand", "ear, dark skin tone"))

    def small(name, words):
        more = ["method.rows=2"] if name == "emoji_clip" else []
        return configured(name, [*words, *SMALL, *more])

    monkeypatch.setattr(bench, "configured", small)
    words = ["emoji.py", "--data", str(pictures), "--runs", str(runs)]
    monkeypatch.setattr(sys, "argv", words)
    bench.main()

    lines = json.loads((out / "emoji.json").read_text(encoding="utf-8"))
    told = [(line["method"], line["steps"], line["evaluations"]) for line in lines]
    assert told == [
        *[("teacher", n, 2 * n) for n in (50, 4, 2, 1)],
        *[("lcm_lora", n, n) for n in (4, 2, 1)],
        ("mbcd_lora", 4, 4),
    ]
    assert {line["guidance"] for line in lines if line["method"] == "teacher"} == {2.0}
    assert all(0 <= line["nearest_caption"] <= 1 for line in lines)
    assert all(0 <= line["diversity"] <= 1 for line in lines)
    page = (out / "emoji.md").read_text(encoding="utf-8")
    assert page.count("`mbcd_lora`") == 2  # its row, and its minutes
    assert "old" not in page
    with Image.open(out / "emoji.png") as drawn:
        assert drawn.width == 190 + 2 * 100
        assert drawn.height > 5 * 96

    # What is trained is read, and measured to the same numbers.
    capsys.readouterr()
    trained = [path.stat().st_mtime_ns for path in sorted(runs.glob("*/log.jsonl"))]
    assert len(trained) == 5
    bench.main()
    assert [path.stat().st_mtime_ns for path in sorted(runs.glob("*/log.jsonl"))] == trained
    again = json.loads((out / "emoji.json").read_text(encoding="utf-8"))
    for line in (*lines, *again):
        del line["seconds_per_image"]
    assert again == lines
