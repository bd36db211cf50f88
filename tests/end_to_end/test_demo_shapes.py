"""`fewstep demo shapes`, two steps of it."""

import json
from pathlib import Path

import pytest

from fewstep.cli.main import main

pytest.importorskip("diffusers")
pytest.importorskip("peft")


def test_the_demo_of_text_to_image(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fewstep.cli.demo_shapes.TEACHER", (4, 2))
    with pytest.raises(SystemExit) as ended:
        main(["demo", "shapes", "trainer.steps=2", "trainer.batch=2", "data.num=200", "--num=20"])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    folder = Path("runs/demo-shapes")
    rows = json.loads((folder / "results.json").read_text())
    found = [(row["role"], row["steps"], row["evaluations"]) for row in rows]
    teacher, student = [("teacher", 4, 8), ("teacher", 2, 4)], []
    for n in (4, 2, 1):
        student.append(("student", n, n))
    assert found == teacher + student
    assert {*rows[0]["values"]} <= {"caption_accuracy", "attribute_diversity", "frechet"}
    # At guidance 3 four steps of the teacher follow most captions, and the student is not trained.
    assert rows[0]["values"]["caption_accuracy"] > 0.6
    assert [row["headline"] for row in rows] == [True, False, True, False, False]
    page = (folder / "report.html").read_text()
    assert "caption accuracy" in page
    # The student at 1, 2 and 4 evaluations, the teacher at 4 and 8, and real images.
    assert page.count("data:image/png") == 6
    for label in ("1 evaluation", "2 evaluations", "4 evaluations", "8 evaluations"):
        assert f'<th class="cost">{label}</th>' in page
    for row in ("teacher", "student"):
        assert row in out
    assert (folder / "student" / "model.json").is_file()
