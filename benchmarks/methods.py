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
again; one under another protocol is refused. Behind it the table of docs/methods.md and
docs/results/methods.svg are written anew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.autograd import forward_ad

from fewstep.choice import kind_of, replaced
from fewstep.cli.configure import configured
from fewstep.data.digits import Digits
from fewstep.files import read_json, write_bytes, write_json
from fewstep.learning.method import Method
from fewstep.learning.slow_target import SlowTarget
from fewstep.metrics.evaluation import Evaluation
from fewstep.metrics.measure import Scale
from fewstep.metrics.protocol import Protocol
from fewstep.models.folder import load
from fewstep.models.network import ConditionedModule
from fewstep.models.source import Saved
from fewstep.recipes import listed
from fewstep.report.tables import Table, markdown
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
LABEL = 1.10  # of the one below: where a label of the plot may begin
WORSE = 1.10  # times the teacher's value: what a method must not exceed


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
    for name in listed():
        run, _ = configured(name, [])
        if name.startswith("digits_") and run.teacher == Saved(TEACHER):
            found.setdefault(kind_of(type(run.method)), name)
    return found


def one_for_each(method: Method) -> bool:
    """Whether it takes a student of its own for each number of evaluations."""
    return not all(method.serves(n) for n in EVALUATIONS)


def stretched(run: Run, steps: int) -> Run:
    """The recipe for another number of steps: warm-up, averages and slow targets span the same
    share of the run.
    """
    factor = steps / run.trainer.steps
    schedule = replaced(run.trainer.schedule, warmup=round(run.trainer.schedule.warmup * factor))
    ema = tuple(decay ** (1 / factor) for decay in run.trainer.ema)
    method = run.method
    if isinstance(method, SlowTarget):
        method = replaced(method, target_decay=method.target_decay ** (1 / factor))
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


@dataclass
class Record:
    """What docs/results/methods.json holds. lines: one for each method, seed and number of
    evaluations, with the values of the student and of its teacher by kind of measure; protocol: of
    all of them.
    """

    budget: int
    protocol: Protocol
    lines: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def read(path: Path) -> Record:
        """What `write` wrote."""
        plain = read_json(path)
        return Record(plain["budget"], Protocol.of_plain(plain["protocol"]), plain["lines"])

    def write(self, path: Path) -> None:
        """Replaces the file."""
        plain = {"budget": self.budget, "protocol": self.protocol.plain(), "lines": self.lines}
        write_json(path, plain)

    def differs(self, other: Record) -> list[str]:
        """Why lines of another record do not belong here, in words."""
        found = self.protocol.differs(other.protocol)
        if self.budget != other.budget:
            found.append(f"budget: {self.budget} against {other.budget}")
        return found

    @property
    def scales(self) -> dict[str, Scale]:
        """How values are read, with one digit; the first measure is the one of the plot."""
        scales = self.protocol.measures
        return {kind: replace(scale, digits=1) for kind, scale in scales.items()}

    @property
    def first(self) -> str:
        """The kind of measure by which methods are compared."""
        return next(iter(self.protocol.measures))

    @property
    def methods(self) -> list[str]:
        """In the order in which they were measured."""
        return list(dict.fromkeys(line["method"] for line in self.lines))

    def values(self, method: str, n: int, kind: str, owner: str = "values") -> list[float]:
        """Of all seeds, at n evaluations; owner "teacher": the teacher's."""
        found = []
        for line in self.lines:
            if (line["method"], line["evaluations"]) == (method, n):
                found.append(line[owner][kind])
        return found

    def middle(self, method: str, n: int, kind: str = "", owner: str = "values") -> float:
        """The median over the seeds; of the first measure if none is named."""
        return statistics.median(self.values(method, n, kind or self.first, owner))

    def spent(self, method: str, n: int, key: str) -> float:
        """The median over the seeds of a figure of the training."""
        lines = [k for k in self.lines if (k["method"], k["evaluations"]) == (method, n)]
        return statistics.median(line[key] for line in lines)


def measured(
    name: str, method: str, budget: int, evaluation: Evaluation
) -> Iterator[dict[str, Any]]:
    """The lines of one method under the seed of the evaluation."""
    seed = evaluation.seed
    run, _ = configured(name, [f"trainer.seed={seed}"])
    each = one_for_each(run.method)
    for serves in [(n,) for n in EVALUATIONS] if each else [EVALUATIONS]:
        run = replaced(run, method=run.method.for_steps(serves[0]))
        with tempfile.TemporaryDirectory() as folder:
            trial = 4 * len(run.method.phases(100))
            cost = student(run, trial, Path(folder, "trial"))[0] / trial
            updates = round(budget / cost)
            rows, seconds = student(run, updates, Path(folder, "run"))
            model = load(str(Path(folder, "run")))
        # None, as the teacher is asked for none.
        guidance = 1.0 if model.guidance.kind == "input" else None
        for n in serves:
            sampler = model.sampler.with_steps(n)
            result = evaluation.of_model(method, model, sampler, guidance=guidance)
            line = {"method": method, "steps": n, "evaluations": result.evaluations, "seed": seed}
            line |= {"values": result.values, "cost": rows, "seconds": round(seconds, 1)}
            line |= {"updates": updates}
            print(json.dumps(line), flush=True)
            yield line


def table(record: Record) -> str:
    """Medians over the seeds, in Markdown: the first measure at all costs, the others at 2."""
    first, *others = record.scales.items()
    costs = [f"at {n}" for n in EVALUATIONS]
    heads = ["method", f"{first[1].heading} {costs[0]} evaluation", *costs[1:]]
    heads += [f"{scale.heading} at 2" for _, scale in others]
    teacher = ["*teacher, best solver*"]
    for n in EVALUATIONS:
        teacher.append(first[1].shown(record.middle(record.methods[0], n, owner="teacher")))
    teacher += [""] * (len(others) + 2)
    rows = [teacher]
    for method in sorted(record.methods, key=lambda name: rank(record, name, 2)):
        row = [f"`{method}`{' ¹' if one_for_each(Method.kinds()[method]()) else ''}"]
        for n in EVALUATIONS:
            values = sorted(record.values(method, n, first[0]))
            median, low, high = statistics.median(values), values[0], values[-1]
            shown = [first[1].shown(value) for value in (median, low, high)]
            row.append(f"{shown[0]} ({shown[1]}–{shown[2]})")
        for kind, scale in others:
            row.append(scale.shown(record.middle(method, 2, kind)))
        row += [f"{record.spent(method, 2, key):.0f}" for key in ("updates", "seconds")]
        rows.append(row)
    text = markdown(Table([*heads, "updates", "seconds"], rows, texts=1))
    note = "¹ One student for each number of evaluations, each with the whole budget. "
    seeds = ", ".join(str(seed) for seed in sorted({line["seed"] for line in record.lines}))
    facts = f"Budget {record.budget:,} evaluations, {record.protocol.num:,} samples, seeds {seeds}"
    return f"{text}\n\n{note}{facts}.\n"


def rank(record: Record, method: str, n: int) -> float:
    """Smaller where the method is better at n evaluations."""
    return record.scales[record.first].rank(record.middle(method, n))


def told(page: str, record: Record) -> str:
    """The page with the table in its place, and with each method's line of it below the method's
    heading.
    """
    head, _, rest = page.partition(BEGIN)
    page = f"{head}{BEGIN}\n{table(record)}{END}{rest.partition(END)[2]}"
    scale = record.scales[record.first]
    costs = " / ".join(str(n) for n in EVALUATIONS)
    for method in record.methods:
        values = " / ".join(scale.shown(record.middle(method, n)) for n in EVALUATIONS)
        line = f"Measured: {scale.name} {values} at {costs} evaluations, in the table above.\n\n"
        page = re.sub(rf"(?m)^(## .*\(`{method}`\)\n\n)(Measured: .*\n\n)?", rf"\g<1>{line}", page)
    return page


def plot(record: Record) -> str:
    """The first measure against evaluations, each method's median under its name; coloured: the
    best at some number, teacher.
    """
    import matplotlib.pyplot as plt

    from fewstep.report.figures import COLOURS, svg

    figure, axes = plt.subplots(figsize=(7.2, 5.0))
    curves, leaders = {}, set()
    for name in record.methods:
        curves[name] = [record.middle(name, n) for n in EVALUATIONS]
    for n in EVALUATIONS:
        leaders.add(min(record.methods, key=lambda name: rank(record, name, n)))
    colours = dict.fromkeys(curves, "#999999") | dict(zip(sorted(leaders), COLOURS[1:]))
    teacher = [record.middle(record.methods[0], n, owner="teacher") for n in EVALUATIONS]
    curves["teacher, best solver"] = teacher
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
        ylabel=record.scales[record.first].name,
        xlim=(0.95, 8),
    )
    axes.set_xticks(EVALUATIONS, [str(n) for n in EVALUATIONS])
    ticks = (5, 10, 20, 50, 100)
    axes.set_yticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    return svg(
        figure, axes, "All methods at one budget; in colour: the best at some number of evaluations"
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
    evaluation = Evaluation.against(Digits().dataset("train"), num=options.num, split="train")
    record = Record(options.budget, evaluation.protocol_of(["image", "label"], options.num))
    if RESULTS.is_file():
        earlier = Record.read(RESULTS)
        if reasons := earlier.differs(record):
            parser.error(f"{RESULTS} has other lines ({'; '.join(reasons)}); remove it first")
        record = earlier
    done = {(line["method"], line["seed"]) for line in record.lines}
    for seed in seeds:
        wanted = [method for method in methods if (method, seed) not in done]
        if not wanted:
            continue
        seeded = replace(evaluation, seed=seed)
        teacher = {}
        for n in EVALUATIONS:
            teacher[n] = seeded.best_solver("teacher", load(TEACHER), n).values
        for method in wanted:
            for line in measured(known[method], method, options.budget, seeded):
                record.lines.append(line | {"teacher": teacher[line["evaluations"]]})
            record.write(RESULTS)
    PAGE.write_text(told(PAGE.read_text(encoding="utf-8"), record), encoding="utf-8")
    write_bytes(PLOT, plot(record).encode())
    say_what_is_worse(record, methods)


def say_what_is_worse(record: Record, methods: list[str]) -> None:
    """A line for each method and cost that the teacher surpasses by far."""
    scale = record.scales[record.first]
    for method in methods:
        for n in EVALUATIONS:
            found, teacher = record.middle(method, n), record.middle(method, n, owner="teacher")
            bound = teacher * WORSE if scale.better == "lower" else teacher / WORSE
            if scale.rank(found) > scale.rank(bound):
                told = f"{scale.shown(found)} against {scale.shown(teacher)}"
                print(f"worse than the teacher: {method} at {n}, {told}", file=sys.stderr)


if __name__ == "__main__":
    main()
