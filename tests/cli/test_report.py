"""`fewstep report`, and the page to which `fewstep evaluate` adds."""

import json
import shutil
from pathlib import Path

from fewstep.data.digits import Digits
from fewstep.metrics.results import read_result
from fewstep.yaml import read_yaml, to_yaml

WORDS = ("--num", "20", "--measures", "frechet,diversity")


def test_the_page_is_written_again(done, runs):
    page = runs / "cd" / "report.html"
    done("report", "runs/cd")  # curves are drawn otherwise here than in the fixture
    before = page.read_text()
    page.unlink()
    shutil.rmtree(runs / "cd" / "report")
    out = done("report", "runs/cd")
    why = "neighbouring pixels have little to do with each other"
    assert out.splitlines() == [
        "drawing samples for the report",
        f"warning: samples look wrong, student with 2 evaluations: noise: {why}",
        f"warning: samples look wrong, teacher with 7 evaluations: noise: {why}",
        "report: runs/cd/report.html",
    ]
    assert f"Look at them: student with 2 evaluations: noise: {why}; teacher with 7" in before
    assert page.read_text() == before
    assert before.count('<th class="cost">') >= 4
    for text in ("<th>teacher</th><th>student</th>", "real images", "arXiv:2406.14548"):
        assert text in before
    none = done("report", "runs/cd", "--seconds", "0")
    assert none.splitlines()[0] == out.splitlines()[0]
    assert none.splitlines()[-1] == out.splitlines()[-1]
    assert page.read_text().count("Left out: ") >= 2


def test_of_a_run_that_has_not_ended(done, runs, unfinished):
    out = done("report", "runs/half")
    assert "runs/half behind step 2 of 3" in out
    assert "<th>model</th>" in (unfinished / "report.html").read_text()


def test_what_is_gone_is_told_and_left_out(done, runs):
    shutil.copytree(runs / "cd", runs / "moved")
    file = runs / "moved" / "run.yaml"
    file.write_text(file.read_text().replace("path: runs/tiny", "path: runs/nowhere"))
    out = done("report", "runs/moved")
    assert "no teacher in the report: no model or run 'runs/nowhere'" in out
    page = (runs / "moved" / "report.html").read_text()
    assert "<th>student</th>" in page
    assert "<th>teacher</th>" not in page


def test_of_what_is_no_run(refused):
    refused(2, "report", "digits_teacher", says="digits_teacher is no run: it holds no run.yaml")


def test_an_evaluation_is_added_to_the_page(done, runs):
    """In the place of an earlier one of the same; samples are not drawn again."""
    folder = runs / "evaluated"
    shutil.copytree(runs / "cd", folder)
    pictures = sorted((folder / "report").iterdir())
    times = [file.stat().st_mtime_ns for file in pictures]
    for steps in ("1", "2", "1"):
        done("evaluate", "runs/evaluated", *WORDS, "--steps", steps)
    results = json.loads((folder / "results.json").read_text())
    assert [(one["steps"], one["role"]) for one in results] == [(2, ""), (1, ""), (0, "data")]
    page = (folder / "report.html").read_text()
    assert "<h2>Quality</h2>" in page
    assert page.index("<h2>Quality</h2>") < page.index("<h2>Samples of the same seeds</h2>")
    assert [file.stat().st_mtime_ns for file in pictures] == times
    done("evaluate", "runs/evaluated", "--num", "40", "--measures", "frechet,diversity")
    assert page.count("<h2>Quality</h2>") == 1  # 20 images and 40 stand in one table, and say so
    assert "<th>images</th>" in (folder / "report.html").read_text()
    done("evaluate", "runs/evaluated", "split=test", *WORDS)  # of another reference
    page = (folder / "report.html").read_text()
    assert page.count("<h2>Quality, ") == 2
    assert "<h2>Quality, 20 samples against 382 images (" in page
    done("train", "runs/evaluated", "--restart")
    assert not (folder / "results.json").exists()


def test_measured_beside_its_teacher(done, runs):
    """Both at several numbers of evaluations, against all data of the run."""
    folder = runs / "measured"
    shutil.copytree(runs / "cd", folder)
    out = done("report", "runs/measured", "--num", "20")
    assert out.splitlines()[0] == "measuring with 20 images for each number of evaluations"
    results = json.loads((folder / "results.json").read_text())
    found = [(one["role"], one["evaluations"]) for one in results]
    students = [("student", cost) for cost in (1, 2, 4)]
    assert found == [("teacher", cost) for cost in (1, 2, 4, 7)] + students + [("data", 0)]
    assert {one["protocol"]["reference"] for one in results} == {Digits().dataset().fingerprint()}
    assert [one["headline"] for one in results[:7]] == [False] * 3 + [True, False, True, False]
    page = (folder / "report.html").read_text()
    for text in ("With 2 evaluations the student makes images", "network evaluations for an image"):
        assert text in page
    mine = results[5]
    done("evaluate", "runs/measured", "--num", "20", "--out", "x.json")
    assert read_result(Path("x.json")).values == mine["values"]
    done("report", "runs/measured", "--num", "20")
    assert len(json.loads((folder / "results.json").read_text())) == 9  # with that of evaluate


def test_measured_without_a_teacher_or_pictures(done, refused, runs):
    folder = runs / "alone"
    shutil.copytree(runs / "tiny", folder)
    done("report", "runs/alone", "--num", "20")
    results = json.loads((folder / "results.json").read_text())
    assert {one["model"] for one in results} == {"model", "data"}
    plain = read_yaml(folder / "run.yaml")
    Path("prompts.txt").write_text("a one\na two\n")
    plain["data"] = {"kind": "prompts", "path": "prompts.txt"}
    (folder / "run.yaml").write_bytes(to_yaml(plain).encode())
    refused(2, "report", "runs/alone", "--num", "20", says="hold no images to compare with")
