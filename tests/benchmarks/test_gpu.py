"""The report of a GPU, tried on a CPU: all of it once and tiny, then its parts on made-up input."""

import contextlib
import json
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fewstep.learning.method import Method

FOLDER = Path(__file__).parents[2] / "benchmarks"
NAMES = ("gpu", "gpu_checks", "gpu_figures", "gpu_tables", "lora", "step")


@pytest.fixture(scope="module")
def files():
    """The script and its neighbours, which import each other by name, as a script may."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        import gpu
        import gpu_checks
        import gpu_figures

        yield gpu, gpu_checks, gpu_figures
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def gpu(files):
    return files[0]


@pytest.fixture(scope="module")
def checks(files):
    return files[1]


@pytest.fixture(scope="module")
def figures(files):
    return files[2]


@pytest.fixture(scope="module")
def dry(files, tmp_path_factory):
    """The whole script with two checks more: one that does not pass, one that breaks."""
    gpu, checks, figures = files
    own = checks.Checks.tasks

    def breaks():
        raise torch.OutOfMemoryError("CUDA out of memory (made up)")

    def tasks(self):
        wrong = {"passed": False, "value": 2.0, "limit": 1.0}
        injected = [
            figures.Task("wrong", 1, lambda: dict(wrong)),
            figures.Task("breaks", 1, breaks),
        ]
        return [*injected, *own(self)]

    path = tmp_path_factory.mktemp("gpu") / "gpu.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks.Checks, "tasks", tasks)
        code = gpu.main(["--dry", "--out", str(path), "--commit", "abc"])
    return code, json.loads(path.read_text(encoding="utf-8"))


def test_a_failing_check_is_recorded_and_ends_nothing(dry):
    code, report = dry
    assert code == 1
    wrong, breaks = report["checks"][:2]
    assert (wrong["name"], wrong["passed"], wrong["value"]) == ("wrong", False, 2.0)
    assert breaks["passed"] is False
    assert breaks["error"] == "OutOfMemoryError: CUDA out of memory (made up)"
    assert breaks["places"][-1].startswith("tests/benchmarks/test_gpu.py:")
    assert [c["name"] for c in report["checks"] if not c["passed"]] == ["wrong", "breaks"]


def test_every_method_takes_a_step_in_every_precision(dry):
    """And nothing is left out of the dry run but what its own list leaves out."""
    _, report = dry
    names = {check["name"] for check in report["checks"]}
    for method in Method.offered():
        for precision in ("fp32", "bf16", "fp16"):
            assert f"step.{precision}.{method}" in names
        assert f"loss.{method}" in names
    assert report["left_out"] == []
    for kind in ("sampling", "memory", "waits", "resume", "compile"):
        assert any(name.startswith(f"{kind}.") for name in names), kind


def test_what_a_cpu_can_show_is_exact(dry):
    """Against itself it is equal to the bit, it never waits, and memory that is said to run out
    halves the passes.
    """
    _, report = dry
    found = {check["name"]: check for check in report["checks"]}
    assert found["loss.dmd2"]["value"] == 0
    assert set(found["sampling.digits_teacher"]["value"].values()) == {0.0}
    memory = found["memory.halving"]["value"]
    assert memory["passes"] == [4]
    assert memory["to told"] == 0
    assert 0 < memory["to whole"] < 1e-6
    for name, check in found.items():
        if name.startswith("resume."):
            assert check["value"]["enough"] == "nothing"
        if name.startswith("waits."):
            assert check["value"]["waits"] == 0


def test_figures_are_positive_and_fit_together(dry, figures):
    _, report = dry
    assert all("error" not in entry for entry in report["figures"])
    peaks = report["figures"][0]
    assert peaks["source"] == "measured"
    steps = [e for e in report["figures"] if e["name"].startswith("step.")]
    assert {e["step"] for e in steps} == {*figures.DRY.first, *figures.DRY.later}
    for entry in steps:
        assert entry["s"] > 0
        assert entry["images_per_s"] == pytest.approx(entry["batch"] / entry["s"])
        if entry["compiled"]:
            assert entry["first_s"] > 0
            continue
        assert entry["rows"] == entry["batch"]
        used = entry["flop"] / entry["s"] / peaks["peak"][entry["precision"]]
        assert entry["utilisation"] == pytest.approx(used)
    flop = {(e["step"], e["precision"]): e["flop"] for e in steps if not e["compiled"]}
    assert 2.5 < flop["edm", "fp32"] / flop["forward", "fp32"] <= 3  # the first layer needs no dx
    assert flop["edm", "fp32"] == flop["bare", "fp32"] == flop["edm", "bf16"]
    [lora] = [e for e in report["figures"] if e["name"].startswith("lora.")]
    assert lora["images_per_s"] == pytest.approx(2 / lora["s"])
    assert lora["held"]["student: optimizer"] > lora["held"]["student"] > 0
    samples = {e["sampler"]: e for e in report["figures"] if e["name"].startswith("sample.")}
    evaluations = {name: e["evaluations"] for name, e in samples.items()}
    assert evaluations == {"1 evaluation": 1, "2 evaluations": 2, "Heun-18": 35}
    assert all(e["images_per_s"] > 0 for e in samples.values())


def test_the_quality_run_is_that_of_the_recipe_in_two_precisions(dry):
    _, report = dry
    assert [e["precision"] for e in report["quality"]] == ["fp32", "bf16"]
    for entry in report["quality"]:
        assert entry["steps"] == 3
        assert entry["train_s"] > 0
        for evaluations in (1, 2):
            assert entry[f"at {evaluations}"]["frechet"] > 0
            assert 0 <= entry[f"at {evaluations}"]["confirmed"] <= 1


def test_the_report_says_where_it_is_from(dry):
    _, report = dry
    assert report["commit"] == "abc"
    assert report["torch"] == str(torch.__version__)
    assert set(report["settings"]) == {"checks", "figures", "quality"}
    assert report["device"]
    assert report["seconds"] > 0


def test_on_a_device_every_method_has_every_check(checks, tmp_path):
    names = {task.name for task in checks.Checks(tmp_path, dry=False).tasks()}
    for method in Method.offered():
        for kind in ("step.fp32", "step.bf16", "step.fp16", "loss", "waits", "resume"):
            assert f"{kind}.{method}" in names


def test_what_does_not_fit_into_the_minutes_is_named(gpu, figures, tmp_path):
    """And what was done is on the disk before the next begins."""
    path = tmp_path / "x.json"
    report = gpu.Report(path, {"device": "none"})
    seen = []

    def work():
        seen.append(json.loads(path.read_text())["figures"] if path.exists() else [])
        return {"s": 1.0}

    tasks = [figures.Task("a", 0, work), figures.Task("b", 1000, work), figures.Task("c", 0, work)]
    gpu.carry_out(report, "figures", tasks, minutes=1)
    assert [[entry["name"] for entry in entries] for entries in seen] == [[], ["a"]]
    written = json.loads(path.read_text())
    assert written["left_out"] == ["figures: b"]
    assert [entry["name"] for entry in written["figures"]] == ["a", "c"]


def test_a_step_that_waits_is_found_with_its_place(figures):
    """As PyTorch says it on a GPU; other warnings do not count."""
    home = figures.step.HOME
    text = f"import warnings\nwarnings.warn({figures.PAST!r} + ' (made up)')\nwarnings.warn('x')"
    inner = compile(text, str(home / "src" / "fewstep" / "made_up.py"), "exec")
    with figures.waits_noted() as found:
        exec(inner)
        exec(inner)
        warnings.warn("something else", stacklevel=1)
    assert found == {"src/fewstep/made_up.py:2": 2}


def test_events_are_summed_by_what_they_are(figures):
    event = figures.Event
    found = figures.summed(
        [
            event("cudaLaunchKernel", False, 1.0),
            event("cuLaunchKernelEx", False, 1.0),
            event("cudaStreamSynchronize", False, 3.0),
            event("aten::mm", False, 5.0),
            event("gemm", True, 0.25),
            event("Memset (Device)", True, 0.0),
            event("Memcpy HtoD (Pageable -> Device)", True, 0.5),
        ]
    )
    assert found["launches"] == 2
    assert found["kernels"] == 1
    assert found["busy_s"] == 0.75
    assert found["copies"] == {"Memcpy HtoD (Pageable -> Device)": 1}
    assert found["waits"] == {"cudaStreamSynchronize": 1}


def test_a_device_is_capped_for_a_while(figures, monkeypatch):
    """To a share of its memory, in bytes; behind it all of it is there again."""
    shares = []
    total = SimpleNamespace(total_memory=80 << 30)
    monkeypatch.setattr(figures, "CUDA", True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: total)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    with figures.memory_of(20 << 30, 1):
        assert shares == [0.25]
    assert shares == [0.25, 1.0]


def test_memory_shrinks_until_it_runs_out(checks, figures, tmp_path, monkeypatch):
    """A batch that goes on with less than its peak, as convolutions do, is not yet a shortage."""

    def memory_of(cap, rows):
        return figures.memory_of(cap, rows) if cap < 800 else contextlib.nullcontext()

    monkeypatch.setattr(checks, "CUDA", True)
    monkeypatch.setattr(checks, "memory_of", memory_of)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 1000)
    monkeypatch.setattr(checks, "CAP_STEP", 0.9)
    found = checks.Checks(tmp_path, dry=True).memory()
    assert found["passed"]
    assert found["value"]["passes"] == [4]
    assert found["value"]["caps"] == [1000, 900, 810, 729]


def test_a_difference_is_found(checks):
    a = {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([3])}
    b = {"x": torch.tensor([1.0, 2.5]), "y": torch.tensor([3])}
    assert checks.apart(a, a) == (0, 0.0)
    assert checks.apart(a, b) == (1, 0.5)
    assert checks.off({"x": 1.1, "y": 2.0}, {"x": 1.0, "y": 2.0}) == pytest.approx(0.1)
    with pytest.raises(AssertionError):
        checks.off({"x": 1.0}, {"y": 1.0})


def test_a_step_without_a_finite_loss_does_not_pass(checks, tmp_path, monkeypatch):
    one = checks.Checks(tmp_path, dry=True)
    lines = [{"step": 1, "loss": float("nan"), "norm.student": 1.0, "skipped": 0.0, "rate": 1.0}]
    monkeypatch.setattr(one, "log", lambda *_: lines)
    assert not one.step("diffusion", "fp32")["passed"]
    lines[0] |= {"loss": 1.0}
    assert one.step("diffusion", "fp32")["passed"]
    lines[0] |= {"skipped": 1.0}
    assert not one.step("diffusion", "fp32")["passed"]


def test_a_method_may_refuse_a_precision_by_its_name(checks, tmp_path, monkeypatch):
    one = checks.Checks(tmp_path, dry=True)

    def refuse(*_):
        raise ValueError("this method does not go with fp16")

    monkeypatch.setattr(one, "log", refuse)
    found = one.step("diffusion", "fp16")
    assert found["passed"]
    assert "fp16" in found["value"]["refused"]
    with pytest.raises(ValueError, match="fp16"):
        one.step("diffusion", "bf16")


def test_a_resumed_run_that_differs_is_found(checks, tmp_path, monkeypatch):
    """With all settings tried, or the one that helped."""
    one = checks.Checks(tmp_path, dry=True)
    answers = iter([(2, 0.5), (0, 0.0), (1, 0.1), (1, 0.1), (1, 0.1)])
    monkeypatch.setattr(one, "resumed", lambda kind: next(answers))
    first, second = one.resume("diffusion"), one.resume("diffusion")
    assert first["passed"]
    assert first["value"]["enough"] == "torch.backends.cudnn.deterministic"
    assert not second["passed"]
    assert len(second["value"]["tried"]) == 3
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_training_that_takes_too_long_is_ended(gpu, figures, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "TRAINING_SECONDS", 0.0)
    begun = time.perf_counter()
    found = gpu.outcome(gpu.quality(figures.DRY, tmp_path)[0], "quality")
    assert found["error"].startswith("TimeoutError: 1 of 3 steps")
    assert time.perf_counter() - begun < 30


@pytest.mark.parametrize("words", [("--sections", "nosuch"), ("--minutes", "many"), ()])
def test_wrong_words_are_refused(gpu, words, monkeypatch):
    """Without a device also the call that asks for one."""
    monkeypatch.setattr(gpu, "CUDA", False)
    with pytest.raises(SystemExit) as ended:
        gpu.arguments(words)
    assert ended.value.code == 2
