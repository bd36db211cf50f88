"""Results as data: files keep them, and what is no result is refused with the reason."""

import json
from dataclasses import replace

import pytest

from fewstep.files import write_json
from fewstep.metrics.measure import Scale
from fewstep.metrics.protocol import Protocol
from fewstep.metrics.results import Result, best_of, read_result, scales_of

LOWER, HIGHER = Scale("distance"), Scale("confirmed", "%", "higher", 1)


PLAIN = Protocol(None, "b", 5, (1, 8, 8), 4, {}).plain()


def result(name="m", role="", **values):
    """One whose measures are `lower…` and `higher…`."""
    scales = {kind: LOWER if kind.startswith("lower") else HIGHER for kind in values}
    protocol = Protocol(None, "b", 5, (1, 8, 8), 4, scales)
    return Result(name, values, protocol, "euler", 2, 3, 7.5, role)


def test_files_keep_everything(tmp_path):
    made = result("größer", "student", lower=1.5, higher=0.25)
    write_json(tmp_path / "x.json", made.plain())
    assert read_result(tmp_path / "x.json") == made
    images = replace(made, solver=None, steps=0, evaluations=0, images_per_second=None)
    write_json(tmp_path / "x.json", images.plain())
    assert read_result(tmp_path / "x.json") == images


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"protocol": None}, "no protocol"),
        ({"protocol": {}}, "features"),
        ({"values": {}}, "values"),
        ({"values": {"other": 1.0}}, "values"),
        ({"values": {"lower": "much"}}, "lower"),
        ({"role": "king"}, "role"),
        ({"model": None}, "model"),
        ({"emissions": 3}, "emissions, unknown to this fewstep"),
        ({"protocol": {**PLAIN, "measures": {"lower": {"name": "x", "axis": 1}}}}, "axis"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path, change, says):
    path = tmp_path / "x.json"
    plain = json.loads(json.dumps(result(lower=1.0).plain()))
    write_json(path, plain | change)
    with pytest.raises(ValueError, match=rf"x\.json is no result.*{says}"):
        read_result(path)


@pytest.mark.parametrize("name", ["model", "values", "protocol"])
def test_what_a_result_must_have(tmp_path, name):
    plain = json.loads(json.dumps(result(lower=1.0).plain()))
    del plain[name]
    write_json(tmp_path / "x.json", plain)
    with pytest.raises(ValueError, match=rf"x\.json is no result.*{name}"):
        read_result(tmp_path / "x.json")


def test_the_best_is_that_of_the_first_measure():
    rows = [result(lower=2.0, higher=0.9), result(lower=1.0, higher=0.1)]
    assert best_of(rows) is rows[1]
    rows = [result(higher=0.9, lower=2.0), result(higher=0.1, lower=1.0)]
    assert best_of(rows) is rows[0]


def test_scales_in_the_order_of_appearance():
    rows = [result(lower=1.0), result(higher=0.1, lower_2=2.0), result(lower=3.0)]
    assert list(scales_of(rows)) == ["lower", "higher", "lower_2"]


def test_the_cost_in_words():
    made = result(lower=1.0)
    assert made.cost == "3 evaluations"
    assert replace(made, evaluations=1).cost == "1 evaluation"
