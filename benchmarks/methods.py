"""One table of all methods: each distils the shipped digits teacher under one budget of network
evaluations.

    make methods
    python benchmarks/methods.py [--methods progressive,dmd2] [--seeds 0,1,2] [--budget 32000]

A method runs as its recipe digits_… has it (networks, loss, optimizer, batch), from the weights of
the shipped teacher, for as many steps as the budget pays; warm-up, averages and slow targets keep
their share of the run. The budget counts the rows that any of its networks evaluates in training,
teacher and student alike; a forward-mode derivative counts as two. Methods whose student serves one
number of steps only get the budget for each of 1, 2 and 4; a student that reads a guidance scale is
asked for none, as the teacher is. A finished line of docs/results/methods.json is not measured
again. Behind it the table of docs/methods.md and docs/results/methods.svg are written anew.
"""

import argparse
import contextlib
import json
import re
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.autograd import forward_ad

from fewstep.choice import kind_of, replaced
from fewstep.cli.configure import configured, listed
from fewstep.data.digits import Digits
from fewstep.files import read_json, write_bytes, write_json
from fewstep.metrics.evaluation import ode_rows, row
from fewstep.metrics.protocol import Reference, find_judge
from fewstep.models.folder import load
from fewstep.models.network import ConditionedModule
from fewstep.models.source import Saved
from fewstep.run import Run, distil

HOME = Path(__file__).resolve().parent.parent
RESULTS, PAGE, PLOT = (
    HOME / "docs" / name for name in ("results/methods.json", "methods.md", "results/methods.svg")
)
TEACHER, EVALUATIONS, BEGIN, END = (
    "digits_teacher",
    (1, 2, 4),
    "<!-- table -->",
    "<!-- end of table -->",
)
# The option that says for how many steps a student is, where it serves no other number.
SERVES = {
    "progressive": "end",
    "dmd2": "steps",
    "multi_boundary": "segments",
    "invertible_consistency": "reverse.segments",
    "phased_consistency": "segments",
}
LABEL = 1.10  # of the one below: where a label of the plot may begin
WORSE = 1.10  # of the teacher's distance: what a method must not exceed


class Count:
    """Rows that networks evaluate while it is open."""

    def __init__(self) -> None:
        self.rows = 0

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Counts every call of a network; one on dual numbers twice."""

        def note(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            if isinstance(module, ConditionedModule):
                dual = (
                    forward_ad._current_level >= 0
                    and forward_ad.unpack_dual(inputs[0]).tangent is not None
                )
                self.rows += len(inputs[0]) * (1 + dual)

        handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
        try:
            yield
        finally:
            handle.remove()


def recipes() -> dict[str, str]:
    """By method the recipe on digits that distils the shipped teacher."""
    found = {}
    for name in listed("recipes"):
        run, _ = configured(name, [])
        if name.startswith("digits_") and run.teacher == Saved(TEACHER):
            found.setdefault(kind_of(type(run.method)), name)
    return found


def stretched(run: Run, steps: int) -> Run:
    """The recipe for another number of steps: warm-up, averages and slow targets span the same
    share of the run.
    """
    factor = steps / run.trainer.steps
    schedule = replaced(run.trainer.schedule, warmup=round(run.trainer.schedule.warmup * factor))
    ema = tuple(decay ** (1 / factor) for decay in run.trainer.ema)
    method = run.method
    if "target_decay" in method.dump():
        method = replaced(method, target_decay=method.target_decay ** (1 / factor))  # type: ignore[attr-defined]
    return replaced(
        run, method=method, trainer=replaced(run.trainer, steps=steps, schedule=schedule, ema=ema)
    )


def student(run: Run, steps: int, folder: Path) -> tuple[int, float]:
    """Trains; returns the rows that were evaluated and the seconds."""
    quiet = {"save_every": 0, "health_every": 0, "sample_every": 0, "log_every": 10**6}
    run = stretched(run, steps)
    run = replaced(run, trainer=replaced(run.trainer, **quiet))
    count, begun = Count(), time.perf_counter()
    with count.open():
        distil(run, folder, restart=True, say=lambda line: None)
    return count.rows, time.perf_counter() - begun


def measured(name: str, method: str, seed: int, budget: int, num: int) -> list[dict[str, Any]]:
    """The lines of one method and seed."""
    run, _ = configured(name, [f"trainer.seed={seed}"])
    reference = Reference.of(run.data.dataset("train"), find_judge(None, (1, 8, 8)))
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for serves in [(n,) for n in EVALUATIONS] if method in SERVES else [EVALUATIONS]:
            if method in SERVES:
                run, _ = configured(
                    name, [f"method.{SERVES[method]}={serves[0]}", f"trainer.seed={seed}"]
                )
            trial = 4 * len(run.method.phases(100))
            cost = student(run, trial, Path(folder, "trial"))[0] / trial
            rows, seconds = student(run, round(budget / cost), Path(folder, "run"))
            model = load(str(Path(folder, "run")))
            for n in serves:
                guidance = (
                    1.0 if model.guidance.kind == "input" else None
                )  # none, as the teacher is asked
                found = row(
                    method,
                    model,
                    model.sampler.with_steps(n),
                    reference,
                    num,
                    seed,
                    guidance=guidance,
                )
                line = {
                    "method": method,
                    "steps": n,
                    "evaluations": found["evaluations"],
                    "seed": seed,
                }
                line |= {key: found[key] for key in ("frechet", "confirmed", "diversity")}
                line |= {
                    "cost": rows,
                    "seconds": round(seconds, 1),
                    "updates": round(budget / cost),
                }
                lines.append(line | {"budget": budget, "samples": num})
                print(json.dumps(line), flush=True)
    return lines


def table(lines: list[dict[str, Any]]) -> str:
    """Medians over the seeds, in Markdown."""
    by: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        by[line["method"], line["evaluations"]].append(line)

    def cell(method: str, n: int) -> str:
        values = [line["frechet"] for line in by[method, n]]
        return f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"

    first = next(iter(by))[0]
    names = sorted({method for method, _ in by}, key=lambda method: middle(lines, method, 2))
    text = [
        "| method | 1 evaluation | 2 | 4 | confirmed at 2 | diversity at 2 | updates | seconds |"
    ]
    teacher = " | ".join(f"{middle(lines, first, n, 'teacher_frechet'):.1f}" for n in EVALUATIONS)
    text += ["|---|" + "--:|" * 7, f"| *teacher, best solver* | {teacher} | | | | |"]
    for method in names:
        cells = [cell(method, n) for n in EVALUATIONS]
        cells += [f"{middle(lines, method, 2, key):.1%}" for key in ("confirmed", "diversity")]
        cells += [f"{middle(lines, method, 2, key):.0f}" for key in ("updates", "seconds")]
        text.append(f"| `{method}`{' ¹' if method in SERVES else ''} | {' | '.join(cells)} |")
    note = "¹ One student for each number of evaluations, each with the whole budget. "
    seeds = ", ".join(str(seed) for seed in sorted({line["seed"] for line in lines}))
    facts = (
        f"Budget {lines[0]['budget']:,} evaluations, {lines[0]['samples']:,} samples, seeds {seeds}"
    )
    return "\n".join(text) + f"\n\n{note}{facts}.\n"


def told(page: str, lines: list[dict[str, Any]]) -> str:
    """The page with the table in its place, and with each method's line of it below the method's
    heading.
    """
    head, _, rest = page.partition(BEGIN)
    page = f"{head}{BEGIN}\n{table(lines)}{END}{rest.partition(END)[2]}"
    for method in {line["method"] for line in lines}:
        values = " / ".join(f"{middle(lines, method, n):.1f}" for n in EVALUATIONS)
        line = (
            f"Measured: Fréchet distance {values} at 1 / 2 / 4 evaluations, in the table above.\n\n"
        )
        page = re.sub(rf"(?m)^(## .*\(`{method}`\)\n\n)(Measured: .*\n\n)?", rf"\g<1>{line}", page)
    return page


def plot(lines: list[dict[str, Any]]) -> str:
    """Distance against evaluations, each method's median under its name; coloured: the best at some
    number, teacher.
    """
    import matplotlib.pyplot as plt

    from fewstep.report.figures import COLOURS, svg

    figure, axes = plt.subplots(figsize=(7.2, 5.0))
    curves = {
        name: [middle(lines, name, n) for n in EVALUATIONS]
        for name in {line["method"] for line in lines}
    }
    leaders = {min(curves, key=lambda name: curves[name][i]) for i in range(len(EVALUATIONS))}
    colours = dict.fromkeys(curves, "#999999") | dict(zip(sorted(leaders), COLOURS[1:]))
    first = next(iter(curves))
    curves["teacher, best solver"] = [
        middle(lines, first, n, "teacher_frechet") for n in EVALUATIONS
    ]
    colours["teacher, best solver"] = COLOURS[0]
    below = 0.0  # where the label below ends: labels are pushed up until none covers another
    for name, values in sorted(curves.items(), key=lambda curve: curve[1][-1]):
        best = colours[name] != "#999999"
        axes.plot(
            EVALUATIONS,
            values,
            color=colours[name],
            linewidth=1 + best,
            marker="o",
            markersize=3,
            zorder=1 + best,
        )
        place = max(values[-1], below * LABEL)
        axes.plot([EVALUATIONS[-1], 4.2], [values[-1], place], color=colours[name], linewidth=0.5)
        axes.text(
            4.25, place, name, fontsize=8, va="center", color=colours[name] if best else "#777777"
        )
        below = place
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="network evaluations",
        ylabel="Fréchet distance",
        xlim=(0.95, 8),
    )
    axes.set_xticks(EVALUATIONS, [str(n) for n in EVALUATIONS])
    ticks = (5, 10, 20, 50, 100)
    axes.set_yticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    return svg(
        figure, axes, "All methods at one budget; in colour: the best at some number of evaluations"
    )


def middle(lines: list[dict[str, Any]], method: str, n: int, key: str = "frechet") -> float:
    """The median over the seeds of a method's number at n evaluations."""
    return statistics.median(
        k[key] for k in lines if (k["method"], k["evaluations"]) == (method, n)
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = recipes()
    parser.add_argument("--methods", default=",".join(known))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--budget", type=int, default=32_000, help="rows evaluated in training, for a student"
    )
    parser.add_argument("--num", type=int, default=2000, help="samples for a number")
    options = parser.parse_args()
    methods, seeds = options.methods.split(","), [int(seed) for seed in options.seeds.split(",")]
    if unknown := set(methods) - set(known):
        parser.error(
            f"no recipe digits_… for {', '.join(sorted(unknown))}; there are {', '.join(known)}"
        )
    lines = read_json(RESULTS) if RESULTS.is_file() else []
    if other := {(k["budget"], k["samples"]) for k in lines} - {(options.budget, options.num)}:
        parser.error(
            f"{RESULTS} holds lines of another (budget, num): {other}; remove it to measure anew"
        )
    done = {(line["method"], line["seed"]) for line in lines}
    reference = Reference.of(Digits().dataset("train"), find_judge(None, (1, 8, 8)))
    for seed in seeds:
        wanted = [method for method in methods if (method, seed) not in done]
        if not wanted:
            continue
        rows = ode_rows("teacher", load(TEACHER), reference, EVALUATIONS, options.num, seed)
        teacher = {found["evaluations"]: found["frechet"] for found in rows}
        for method in wanted:
            for line in measured(known[method], method, seed, options.budget, options.num):
                lines.append(line | {"teacher_frechet": teacher[line["evaluations"]]})
            write_json(RESULTS, lines)
    PAGE.write_text(told(PAGE.read_text(encoding="utf-8"), lines), encoding="utf-8")
    write_bytes(PLOT, plot(lines).encode())
    for method, n in [(method, n) for method in methods for n in EVALUATIONS]:
        found, goal = middle(lines, method, n), WORSE * middle(lines, method, n, "teacher_frechet")
        if found > goal:
            print(
                f"worse than the teacher: {method} at {n} evaluations, {found:.1f} > {goal:.1f}",
                file=sys.stderr,
            )


if __name__ == "__main__":
    main()
