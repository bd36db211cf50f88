"""`--json`: what the tables say, for programs; nothing else is printed."""

import json

import pytest
from tests.cli.conftest import LOOP

from fewstep.metrics.results import Result
from fewstep.recipes import listed


@pytest.fixture
def told(done):
    """What a command printed, as JSON."""

    def call(*words):
        return json.loads(done(*words, "--json"))

    return call


def test_evaluate(told, done, runs):
    found = told("evaluate", "runs/cd", "--num", "80", "--seed", "1")
    results = [Result.of_plain(one) for one in found["results"]]
    assert [one.model for one in results] == ["cd", "data"]
    assert found["judge"].endswith("of images that are held out")
    table = done("evaluate", "runs/cd", "--num", "80", "--seed", "1")
    assert f"{results[0].values['frechet']:.2f}" in table


def test_compare(told, runs):
    found = told("compare", "runs/cd,steps=1", "digits_teacher,steps=2", "--out", "x.png")
    assert [row["model"] for row in found["rows"]] == ["cd", "digits_teacher"]
    assert [row["evaluations"] for row in found["rows"]] == ["1", "3"]
    assert found["x.png"] == "2 rows of 8 images, seed 0"


def test_plan(told):
    found = told("plan", "digits_cd", *LOOP)
    assert found["plan"]["trained"]["student"] > 1000
    assert found["plan"]["step"] > 0
    assert {row["role"] for row in found["rows"]} >= {"student", "teacher", "peak"}
    (warning,) = found["warnings"]
    assert warning.startswith("the learning rate ends at 6% of itself")


def test_what_is_said_meanwhile_goes_elsewhere(fewstep, monkeypatch):
    monkeypatch.setattr("fewstep.cli.plan.LARGE", 0)
    ended = fewstep("plan", "digits_cd", *LOOP, "--json")
    assert json.loads(ended.out)["plan"]
    assert "trying steps of a network of" in ended.err


def test_data_check(told):
    found = told("data", "check", "digits")
    assert found["kind"] == "digits"
    assert found["images"] == "1797 of 8×8, 1 channel"
    assert found["split train"] + found["split test"] == 1797
    assert found["next"] == "fewstep train images_teacher data=digits"


def test_inspect(told, runs):
    assert told("inspect", "recipes") == listed()
    methods = told("inspect", "methods")
    assert "distribution matching distillation" in methods["dmd2"]
    (kind,) = told("inspect", "consistency_distillation")["kinds"]
    assert kind["family"] == "method"
    assert "bins" in [option["option"] for option in kind["options"]]
    assert told("inspect", "digits_cd")["run"]["method"]["kind"] == "consistency_distillation"
    model = told("inspect", "runs/cd")
    assert model["classes"] == 10
    assert model["network"].startswith("unet, ")


def test_an_error_is_an_error(refused):
    refused(2, "inspect", "nobody", "--json", says="no model, run or name 'nobody'")
    refused(2, "plan", "digits_cd", "quark=1", "--json", says="quark")
