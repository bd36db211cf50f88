"""Tables are made of results alone."""

from dataclasses import replace

from fewstep.cli.tables import print_table
from fewstep.metrics.measure import Scale
from fewstep.metrics.protocol import Protocol
from fewstep.metrics.results import Result
from fewstep.report.tables import Table, markdown, table

SCALES = {
    "frechet": Scale("Fréchet distance"),
    "confirmed": Scale("confirmed", "%", "higher", 1),
    "delay": Scale("delay", "ms", "lower", 0),
}


def result(name, role="", solver=None, steps=0, evaluations=0, rate=None, **values):
    protocol = Protocol(None, "b", 5, (1, 8, 8), 4, {kind: SCALES[kind] for kind in values})
    return Result(name, values, protocol, solver, steps, evaluations, rate, role)


RESULTS = [
    result("a", "teacher", "heun", 18, 35, 1234.5, frechet=3.789, confirmed=0.99),
    result("b", "student", "renoise", 2, 2, 20_000.0, confirmed=1.0, delay=7.4),
    result("c", "data", frechet=33.2),
]


def test_columns_are_the_measures_that_there_are():
    found = table(RESULTS)
    assert found.columns == [
        *("model", "solver", "steps", "evaluations"),
        *("Fréchet distance ↓", "confirmed ↑", "delay in ms ↓", "images/s"),
    ]
    assert found.rows == [
        ["a", "heun", "18", "35", "3.79", "99.0%", "", "1,234"],
        ["b", "renoise", "2", "2", "", "100.0%", "7", "20,000"],
        ["c", "", "", "", "33.20", "", "", ""],
    ]
    assert found.roles == ["teacher", "student", "data"]


def test_unequal_numbers_of_images_are_shown():
    rows = [RESULTS[0], replace(RESULTS[2], protocol=replace(RESULTS[2].protocol, num=5000))]
    found = table(rows)
    assert found.columns[4] == "images"
    assert [row[4] for row in found.rows] == ["4", "5,000"]


def test_on_a_terminal(capsys):
    print_table(["name", "n"], [["a", "1"], ["bcdefg", "1,000"]], texts=1)
    assert capsys.readouterr().out.splitlines() == [
        "name        n",
        "------  -----",
        "a           1",
        "bcdefg  1,000",
    ]


def test_in_markdown():
    text = markdown(Table(["name", "n"], [["a", "1"], ["b", "2"]], texts=1))
    assert text.splitlines() == ["| name | n |", "|---|--:|", "| a | 1 |", "| b | 2 |"]
