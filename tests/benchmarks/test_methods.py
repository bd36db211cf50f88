"""The table of all methods: who is in it, and how evaluations are counted."""

import importlib.util
from pathlib import Path

import pytest
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


def test_warm_up_and_averages_keep_their_share_of_the_run():
    """What the average still holds of the first weights is the same at the end of both."""
    config = configured("digits_cd", [])[0].trainer
    short = methods.stretched(config, 50)
    assert (config.steps, config.schedule.warmup, short.steps, short.schedule.warmup) == (500, 50, 50, 5)
    assert short.ema[0] ** 50 == pytest.approx(config.ema[0] ** 500)
    assert methods.stretched(config, config.steps) == config


def test_the_page_says_what_was_measured_once():
    """The table between its marks, and each method's medians below its heading; a second time changes nothing."""
    keys = {"confirmed": 1.0, "diversity": 0.5, "updates": 7, "seconds": 3.0, "teacher_frechet": 95.0}
    lines = [
        {"method": method, "evaluations": n, "seed": seed, "frechet": 10.0 * n + seed + bonus, **keys}
        for method, bonus in (("dmd2", 0.0), ("mean_flow", 100.0))
        for n in methods.EVALUATIONS
        for seed in (0, 1, 5)
    ]
    page = methods.told(methods.PAGE.read_text(encoding="utf-8"), lines, {"seeds": "0,1,5"})
    assert (
        page.count("| `dmd2` ¹ | 11.0 (10.0–15.0) | 21.0 (20.0–25.0) | 41.0 (40.0–45.0) | 100.0% | 50.0% | 7 | 3 |")
        == 1
    )
    assert "| *teacher, best solver* | 95.0 | 95.0 | 95.0 |" in page
    for method, medians in {"dmd2": "11.0 / 21.0 / 41.0", "mean_flow": "111.0 / 121.0 / 141.0"}.items():
        part = page.partition(f"(`{method}`)\n\n")[2].partition("\n## ")[0]
        assert part.startswith(f"Measured: Fréchet distance {medians} at 1 / 2 / 4")
        assert part.count("Measured:") == 1
    assert methods.told(page, lines, {"seeds": "0,1,5"}) == page
