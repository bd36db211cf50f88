"""Reports: what a reader is told is in the results."""

import re
from dataclasses import replace

import pytest
import torch
from tests.report.test_tables import RESULTS, SCALES

from fewstep.report.page import write_page
from fewstep.report.run_report import memory_section, quality_section, write_quality

UNSEEN = "The c row is what 4 unseen images reach."


def headlined(*places):
    return [replace(one, headline=i in places) for i, one in enumerate(RESULTS)]


def test_the_headline_compares_the_rows_that_say_so():
    rows = headlined(0, 1)
    rows[1] = replace(rows[1], values={"frechet": 5.23}, protocol=rows[0].protocol)
    text = quality_section(rows).text
    assert text.startswith(
        "With 2 evaluations the student makes images 16.2 times as fast as the teacher with 35 "
        "evaluations; its Fréchet distance is 5.23 against 3.79."
    )
    assert text.endswith(f" {UNSEEN}")


@pytest.mark.parametrize("places", [(), (0,), (1,)])
def test_without_two_such_rows_there_is_none(places):
    assert quality_section(headlined(*places)).text == UNSEEN
    assert quality_section(headlined(*places)[:2]).text == ""


def test_what_columns_mean():
    rows = list(RESULTS)
    scale = replace(SCALES["delay"], about="how long one waits")
    rows[1] = replace(
        rows[1], protocol=replace(rows[1].protocol, measures=SCALES | {"delay": scale})
    )
    assert quality_section(rows).facts["delay in ms ↓"] == "how long one waits; lower is better"


def test_the_page_marks_rows_by_role(tmp_path):
    """A model may be called student: its name says nothing."""
    rows = [replace(RESULTS[0], model="student"), RESULTS[1], replace(RESULTS[2], role="")]
    write_quality(tmp_path / "x.html", "<title>", rows)
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    found = re.findall(r'<tr class="(\w*)">\s*<td class="text">(\w+)</td>', page)
    assert found == [("teacher", "student"), ("student", "b"), ("", "c")]
    assert "&lt;title&gt;" in page
    assert "tr.student {" in page
    assert "<dt>reference</dt><dd>b (5 images)</dd>" in page


def test_memorisation_counts_what_is_far_nearer_than_most(tmp_path):
    distances = torch.tensor([0.1, 1.0, 1.1, 1.2, 1.3])
    section = memory_section({"samples": (distances, distances + 1)})
    assert section.table.rows == [["samples", "1.100", "2.100", "20.0%"]]
    write_page(tmp_path / "x.html", "t", "", [section])
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert '<td class="text">samples</td><td>1.100</td>' in page
    assert "<tr><td" in re.sub(r">\s+<", "><", page)
