"""The table of all methods: who is in it, and how evaluations are counted."""

import importlib.util
from pathlib import Path

import torch

from fewstep.cli.configure import configured, listed
from fewstep.learning.method import Clock
from fewstep.learning.tangent import Difference, Forward, Point
from fewstep.models.bundle import load

PATH = Path(__file__).parents[2] / "benchmarks" / "methods.py"
SPEC = importlib.util.spec_from_file_location("methods_benchmark", PATH)
methods = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(methods)


def test_every_method_has_a_recipe_on_the_shipped_teacher():
    found = methods.recipes()
    assert set(found) == set(listed("methods")) - {"diffusion"}
    assert all(configured(name, [])[0].start is None for name in found.values())


def test_a_student_for_one_number_of_steps_is_told_it():
    """With that option the sampler has that number, and no other method has such an option."""
    recipes = methods.recipes()
    for method, option in methods.SERVES.items():
        for n in methods.EVALUATIONS:
            run, _ = configured(recipes[method], [f"method.{option}={n}"])
            clock = Clock(99, 100, 64, phase=len(run.method.phases(100)) - 1)
            assert run.method.sampler(clock).steps == n, method


def test_evaluations_are_counted_in_rows_and_a_derivative_twice():
    model = load("digits_teacher")
    x, t = torch.randn(3, 1, 8, 8), torch.ones(3)
    cond = model.conditioner(torch.arange(3))
    at, rate = Point(x, t), Point(torch.ones_like(x), t)
    count = methods.Count()
    with torch.no_grad(), count.open():
        model.denoiser(x, t, cond)
        assert count.rows == 3
        Forward()(model.denoiser, at, rate, cond)
        assert count.rows == 3 + 6
        Difference()(model.denoiser, at, rate, cond)
        assert count.rows == 3 + 6 + 9
    model.denoiser(x, t, cond)
    assert count.rows == 18
