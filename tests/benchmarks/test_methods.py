"""The table of all methods: who is in it, and how evaluations are counted."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewstep.cli.configure import configured
from fewstep.learning.method import Clock, Method
from fewstep.learning.tangent import Difference, Forward, Point
from fewstep.metrics.results import Result
from fewstep.models.folder import load

KINDS = {"frechet", "confirmed", "diversity"}
PATH = Path(__file__).parents[2] / "benchmarks" / "methods.py"
SPEC = importlib.util.spec_from_file_location("methods_benchmark", PATH)
methods = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = methods  # where its dataclasses look for their names
SPEC.loader.exec_module(methods)


def test_every_method_has_a_recipe_on_the_shipped_teacher():
    found = methods.recipes()
    as_many_steps_as_before = {"diffusion", "guided_distillation"}
    assert set(found) == set(Method.offered()) - as_many_steps_as_before
    assert all(configured(name, [])[0].start is None for name in found.values())


def test_a_student_for_one_number_of_steps_is_told_it():
    """Then it serves that number alone, and its sampler has it; the others are left as they are."""
    single = set()
    for name, recipe in methods.recipes().items():
        method = configured(recipe, [])[0].method
        for n in methods.EVALUATIONS:
            made = method.for_steps(n)
            assert made.serves(n), name
            if not methods.one_for_each(method):
                assert made == method
                continue
            single.add(name)
            assert [m for m in range(1, 20) if made.serves(m)] == [n], name
            clock = Clock(99, 100, 64, phase=len(made.phases(100)) - 1)
            assert made.sampler(clock).steps == n, name
    assert single == {
        "dmd2",
        "invertible_consistency",
        "multi_boundary",
        "phased_consistency",
        "progressive",
    }


def test_evaluations_are_counted_in_rows_and_a_derivative_twice():
    model = load("digits_teacher")
    x, t = torch.randn(3, 1, 8, 8), torch.ones(3)
    cond = model.conditioner({"label": torch.arange(3)})
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


def test_what_is_slow_keeps_its_share_of_the_run():
    """What the average, or the target, still holds of the first weights is the same at the end of
    both.
    """
    run, _ = configured("digits_cd", [])
    short = methods.stretched(run, 50)
    config, other = run.trainer, short.trainer
    assert (config.steps, config.schedule.warmup, other.steps, other.schedule.warmup) == (
        500,
        50,
        50,
        5,
    )
    assert other.ema[0] ** 50 == pytest.approx(config.ema[0] ** 500)
    assert short.method.target_decay**50 == pytest.approx(run.method.target_decay**500)
    assert methods.stretched(run, config.steps) == run
    data, _ = configured("digits_ect", [])  # its target is the student itself
    assert methods.stretched(data, 50).method == data.method


@pytest.fixture
def stubbed(monkeypatch, tmp_path):
    """The benchmark without trainings: what was trained and asked, line by line."""
    seen = []

    def distil(run, folder, **_):
        seen.append((run.trainer.steps, run.trainer.seed, run.method.dump()))
        for module in torch.nn.modules.module._global_forward_pre_hooks.values():
            network = load("digits_teacher").denoiser.network
            module(network, (torch.zeros(128 * run.trainer.steps, 1),))

    def of_model(self, name, model, sampler, *, guidance=None):
        seen.append((sampler.steps, guidance))
        values = {"frechet": 9.0, "confirmed": 1.0, "diversity": 0.5}
        return Result(name, values, self.protocol, evaluations=sampler.steps)

    def best_solver(self, name, model, evaluations):
        values = {"frechet": 90.0 + evaluations, "confirmed": 0.9, "diversity": 0.4}
        return Result(name, values, self.protocol, evaluations=evaluations)

    trained = load("digits_teacher")
    monkeypatch.setattr(methods, "distil", distil)
    monkeypatch.setattr(methods.Evaluation, "of_model", of_model)
    monkeypatch.setattr(methods.Evaluation, "best_solver", best_solver)
    monkeypatch.setattr(methods, "load", lambda path: trained)
    for name in ("RESULTS", "PAGE", "PLOT"):
        monkeypatch.setattr(methods, name, tmp_path / name)
    methods.PAGE.write_text(
        f"# Page\n\n{methods.BEGIN}\n{methods.END}\n\n## X (`dmd2`)\n\ntext\n", encoding="utf-8"
    )
    return seen, trained


def test_a_line_has_what_the_table_needs(stubbed, monkeypatch):
    """One student for all numbers of evaluations, or one for each; a second call measures what is
    missing only.
    """
    seen, trained = stubbed
    monkeypatch.setattr(
        "sys.argv",
        ["methods", "--methods", "easy_consistency,dmd2", "--seeds", "0,3", "--num", "100"],
    )
    methods.main()
    record = methods.Record.read(methods.RESULTS)
    lines = record.lines
    assert all(set(line["values"]) == set(line["teacher"]) == KINDS for line in lines)
    assert {"steps", "cost", "seconds"} <= set(lines[0])
    assert [(k["method"], k["seed"], k["evaluations"]) for k in lines] == [
        (method, seed, n)
        for seed in (0, 3)
        for method in ("easy_consistency", "dmd2")
        for n in (1, 2, 4)
    ]
    assert {(k["cost"], k["updates"]) for k in lines} == {(32_000, 250)}
    assert (record.budget, record.protocol.num) == (32_000, 100)
    assert [k["teacher"]["frechet"] for k in lines[:3]] == [91.0, 92.0, 94.0]
    trainings = [entry for entry in seen if len(entry) == 3]
    assert [(steps, seed) for steps, seed, _ in trainings] == [(4, 0), (250, 0)] * 4 + [
        (4, 3),
        (250, 3),
    ] * 4
    assert [entry[2]["steps"] for entry in trainings[2:8]] == [
        1,
        1,
        2,
        2,
        4,
        4,
    ]  # dmd2's students, each with all of it
    assert "seeds 0, 3." in methods.PAGE.read_text(encoding="utf-8")
    assert methods.PLOT.read_bytes().startswith(b"<svg")

    seen.clear()
    trained.guidance = trained.guidance._replace(kind="input")
    monkeypatch.setattr(
        "sys.argv", ["methods", "--methods", "easy_consistency", "--seeds", "0,4", "--num", "100"]
    )
    methods.main()
    assert seen[2:] == [
        (1, 1.0),
        (2, 1.0),
        (4, 1.0),
    ]  # a student that reads its guidance is asked for none
    assert {line["seed"] for line in methods.Record.read(methods.RESULTS).lines} == {0, 3, 4}


def test_lines_of_another_protocol_are_refused(stubbed, monkeypatch, capsys):
    words = ["methods", "--methods", "easy_consistency", "--seeds", "0", "--num", "100"]
    monkeypatch.setattr("sys.argv", words)
    methods.main()
    for others, says in (
        (["--num", "200"], "number of samples: 100 against 200"),
        (["--num", "100", "--budget", "64000"], "budget: 32000 against 64000"),
    ):
        monkeypatch.setattr("sys.argv", ["methods", *others])
        with pytest.raises(SystemExit):
            methods.main()
        assert says in capsys.readouterr().err


def test_the_page_says_what_was_measured_once():
    """The table between its marks, and each method's medians below its heading; a second time
    changes nothing.
    """
    protocol = methods.Record.read(methods.RESULTS).protocol
    record = methods.Record(32_000, replace(protocol, num=2_000))
    for method, bonus in (("dmd2", 0.0), ("mean_flow", 100.0)):
        for n in methods.EVALUATIONS:
            for seed in (0, 1, 5):
                values = {"frechet": 10.0 * n + seed + bonus, "confirmed": 1.0, "diversity": 0.5}
                line = {"method": method, "evaluations": n, "seed": seed, "values": values}
                teacher = {"frechet": 95.0}
                record.lines.append(line | {"teacher": teacher, "updates": 7, "seconds": 3.0})
    page = methods.told(methods.PAGE.read_text(encoding="utf-8"), record)
    assert (
        page.count(
            "| `dmd2` ¹ | 11.0 (10.0–15.0) | 21.0 (20.0–25.0) | 41.0 (40.0–45.0) | 100.0% | 50.0% "
            "| 7 | 3 |"
        )
        == 1
    )
    assert "| *teacher, best solver* | 95.0 | 95.0 | 95.0 |" in page
    for method, medians in {
        "dmd2": "11.0 / 21.0 / 41.0",
        "mean_flow": "111.0 / 121.0 / 141.0",
    }.items():
        part = page.partition(f"(`{method}`)\n\n")[2].partition("\n## ")[0]
        assert part.startswith(f"Measured: Fréchet distance {medians} at 1 / 2 / 4")
        assert part.count("Measured:") == 1
    assert methods.told(page, record) == page


def test_what_is_worse_than_the_teacher_is_said(capsys):
    """By more than a tenth, in the direction of the measure."""
    for better, value in (("lower", 95.0), ("higher", 80.0)):
        scale = methods.Scale("x", better=better, digits=1)
        protocol = methods.Record.read(methods.RESULTS).protocol
        record = methods.Record(1, replace(protocol, measures={"x": scale}))
        for n, found in zip(methods.EVALUATIONS, (value, 87.0, 88.0)):
            line = {"method": "a", "evaluations": n, "values": {"x": found}}
            record.lines.append(line | {"teacher": {"x": 86.0 if better == "lower" else 89.0}})
        methods.say_what_is_worse(record, ["a"])
        lines = capsys.readouterr().err.splitlines()
        assert lines == [
            f"worse than the teacher: a at 1, {value} against {record.lines[0]['teacher']['x']}"
        ]
