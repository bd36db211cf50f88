"""One report of what only a GPU can show: checks, figures of speed and memory, a quality run.

    python benchmarks/gpu.py [--minutes 8] [--out docs/results/gpu.json]
    python benchmarks/gpu.py --dry --out /tmp/gpu.json    # the whole script on a CPU, tiny
    python benchmarks/gpu.py --show docs/results/gpu.json # a report as tables in Markdown

Sections run in the order of their value: checks (gpu_checks.py), figures (gpu_figures.py), quality.
Each has its share of the minutes; what does not fit is named in the report under "left_out". An
error is recorded with its place and ends nothing. The report is written behind every entry. Exit
code 1: a check failed.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import step
import torch
from gpu_checks import Checks
from gpu_figures import (
    CUDA,
    DRY,
    FULL,
    SAMPLERS,
    Scale,
    Task,
    compiled_figures,
    lora_figures,
    peaks,
    sampling_figures,
    step_figures,
    tf32,
)
from gpu_tables import tables
from step import DEVICE, HOME

from fewstep.choice import replaced
from fewstep.metrics.evaluation import Evaluation
from fewstep.models.folder import load
from fewstep.recipes.digits import digits_cd
from fewstep.run import distil
from fewstep.training.seen import Seen

ENDS = {"checks": 0.45, "figures": 0.8, "quality": 1.0}  # of the minutes, when a section has to end
SETTINGS = {
    "checks": "fp32 without TF32",
    "figures": "fp32 with TF32; medians of blocks of steps between two synchronisations",
    "quality": "fp32 without TF32; 2,000 samples in the features of digits_classifier",
}
TRAINING_SECONDS = 60.0  # of the quality run, at most


@dataclass
class Report:
    """What is written: facts, then a list of entries for each section, each with its name."""

    path: Path
    facts: dict[str, Any]
    sections: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    begun: float = field(default_factory=time.perf_counter)

    def add(self, section: str, entry: dict[str, Any]) -> None:
        """One entry more, on the disk at once."""
        self.sections.setdefault(section, []).append(entry)
        self.write()

    def write(self) -> None:
        """The report as it stands."""
        written = {**self.facts, "seconds": round(time.perf_counter() - self.begun, 1)}
        written |= {"left_out": self.left_out, **self.sections}
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
        beside.replace(self.path)

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The checks that did not pass."""
        return [entry for entry in self.sections.get("checks", ()) if not entry["passed"]]


def carry_out(report: Report, section: str, tasks: Sequence[Task], minutes: float) -> None:
    """The tasks of a section, as far as they fit into its share of the minutes."""
    end = report.begun + 60 * minutes * ENDS[section]
    for task in tasks:
        if time.perf_counter() + task.seconds > end:
            report.left_out.append(f"{section}: {task.name}")
            continue
        entry = {"name": task.name, **outcome(task, section)}
        report.add(section, entry)
        print(told(section, entry), flush=True)
    report.write()


def outcome(task: Task, section: str) -> dict[str, Any]:
    """What the task gives, or its error; a check with an error has failed."""
    begun = time.perf_counter()
    try:
        found = task.work()
    except Exception as error:
        found = {"passed": False} if section == "checks" else {}
        found["error"] = f"{type(error).__name__}: {str(error)[:500]}"
        found["places"] = places_of(error)
    return {**found, "seconds": round(time.perf_counter() - begun, 2)}


def places_of(error: BaseException) -> list[str]:
    """The lines of this project that the error came through, the last three."""
    found = []
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.startswith(str(HOME)):
            found.append(f"{Path(frame.filename).relative_to(HOME)}:{frame.lineno}")
    return found[-3:]


def told(section: str, entry: dict[str, Any]) -> str:
    """One line of the table that is printed."""
    name = f"{entry['name']:46}"
    if "error" in entry:
        return f"{'FAILED' if section == 'checks' else 'error':7} {name} {entry['error'][:160]}"
    if section == "checks":
        value = json.dumps(entry["value"])
        return f"{'passed' if entry['passed'] else 'FAILED':7} {name} {value[:160]}"
    keys = ("s", "images_per_s", "peak_mib", "launches", "busy_s", "utilisation", "first_s")
    shown = [f"{key} {entry[key]:.4g}" for key in keys if entry.get(key) is not None]
    if not shown:
        rest = {k: v for k, v in entry.items() if k not in ("name", "seconds")}
        shown = [json.dumps(rest)[:200]]
    return f"{section:7} {name} {', '.join(shown)}"


def figures(scale: Scale) -> list[Task]:
    """All cells, the most telling first."""
    peak: dict[str, Any] = {}

    def ceilings() -> dict[str, Any]:
        peak.update(peaks(scale))
        return dict(peak)

    def cells(names: Sequence[str], batches: Sequence[int]) -> Iterator[Task]:
        for name in names:
            for batch in batches:
                for precision in ("bf16", "fp32"):
                    work = partial(step_figures, scale, peak, name, batch, precision)
                    yield Task(f"step.{name}.{batch}.{precision}", 5, work)

    tasks = [Task("peaks", 5, ceilings), *cells(scale.first, scale.batches)]
    if not scale.small:
        tasks += cells(("digits", "digits_bare"), (step.BATCH[1],))
    for precision in scale.lora_in:
        tasks.append(Task(f"lora.{precision}", 60, partial(lora_figures, scale, precision)))
    for batch in scale.sampled:
        for name in SAMPLERS:
            for precision in ("bf16", "fp32"):
                work = partial(sampling_figures, scale, name, batch, precision)
                tasks.append(Task(f"sample.{name}.{batch}.{precision}", 5, work))
    for name, precision in scale.compiled:
        work = partial(compiled_figures, scale, name, precision)
        tasks.append(Task(f"step.{name}.compiled.{precision}", 40, work))
    tasks += cells(scale.later, scale.batches)
    return tasks


def quality_of(scale: Scale, folder: Path, precision: str) -> dict[str, Any]:
    """The recipe digits_cd, and Fréchet distances of its student. TimeoutError where it takes too
    long.
    """
    run = digits_cd()
    quiet = {"save_every": 0, "health_every": 0, "device": DEVICE.type, "precision": precision}
    steps = scale.quality_steps or run.trainer.steps
    run = replaced(run, trainer=replaced(run.trainer, steps=steps, **quiet))
    begun = time.perf_counter()

    def look(seen: Seen) -> None:
        if time.perf_counter() - begun > TRAINING_SECONDS:
            raise TimeoutError(f"{seen.done} of {steps} steps took {TRAINING_SECONDS:.0f} s")

    with tf32(False):
        distil(run, folder, restart=True, observers=[look], say=lambda line: None)
        taken = time.perf_counter() - begun
        evaluation = Evaluation.against(run.data.dataset("train"), num=scale.images)
        student = load(folder).to(DEVICE)
        found: dict[str, Any] = {"precision": precision, "steps": steps, "train_s": taken}
        for evaluations in (1, 2):
            sampler = student.sampler.with_steps(evaluations)
            result = evaluation.of_model("student", student, sampler)
            found[f"at {evaluations}"] = dict(result.values)
    return found


def quality(scale: Scale, folder: Path) -> list[Task]:
    """The recipe in both precisions."""
    tasks = []
    for precision in ("fp32", "bf16"):
        work = partial(quality_of, scale, folder / f"quality_{precision}", precision)
        tasks.append(Task(f"digits_cd.{precision}", 5 if scale.quality_steps else 30, work))
    return tasks


def said_by(*command: str) -> str | None:
    """The first line that a command prints; None where there is no such command, or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=HOME)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().split("\n")[0] if done.returncode == 0 else None


def processor() -> str:
    """The name of the host's processor."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else ():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def facts_of(options: argparse.Namespace) -> dict[str, Any]:
    """Where, when and with what the report is made."""
    driver = said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "device": step.machine(),
        "date": str(date.today()),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda if CUDA else None,
        "cudnn": torch.backends.cudnn.version() if CUDA else None,
        "driver": driver if CUDA else None,
        "host": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "commit": options.commit or said_by("git", "rev-parse", "HEAD"),
        "command": options.command,
        "settings": SETTINGS,
    }


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="that all may take, about")
    parser.add_argument("--out", type=Path, default=HOME / "docs" / "results" / "gpu.json")
    parser.add_argument("--dry", action="store_true", help="tiny, on a CPU too")
    parser.add_argument("--sections", default=",".join(ENDS), help="of " + ", ".join(ENDS))
    parser.add_argument("--match", default="", help="only entries whose name contains this")
    parser.add_argument("--commit", help="of the tree that is measured, where git does not know")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print this report's tables only")
    options = parser.parse_args(words)
    options.command, options.sections = list(words), options.sections.split(",")
    if unknown := set(options.sections) - set(ENDS):
        parser.error(f"unknown sections: {', '.join(sorted(unknown))}")
    if not CUDA and not options.dry and not options.show:
        parser.error("there is no CUDA device here; --dry tries the script on the CPU")
    return options


def main(words: Sequence[str]) -> int:
    """Measures, writes and prints; returns the exit code."""
    options = arguments(words)
    if options.show:
        print(tables(json.loads(options.show.read_text(encoding="utf-8"))))
        return 0
    scale = DRY if options.dry else FULL
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report = Report(options.out, facts_of(options))
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        folder = Path(name)
        sections = {
            "checks": Checks(folder, options.dry).tasks(),
            "figures": figures(scale),
            "quality": quality(scale, folder),
        }
        for section in options.sections:
            tasks = [task for task in sections[section] if options.match in task.name]
            carry_out(report, section, tasks, options.minutes)
    checks = report.sections.get("checks", [])
    print(f"{report.facts['device']}: {len(checks) - len(report.failed)} checks passed", end=", ")
    print(f"{len(report.failed)} failed, {len(report.left_out)} left out; {options.out}")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
