"""The report of benchmarks/gpu.py as short tables in Markdown."""

import math
from collections.abc import Sequence
from typing import Any

from fewstep.report.tables import Table, markdown

Entry = dict[str, Any]
CHECKS = {
    "step.fp32": "a step of every method, fp32",
    "step.bf16": "a step of every method, bf16",
    "step.fp16": "a step of every method, fp16",
    "loss": "losses of the first step against the CPU's, relative",
    "sampling": "sampled images against the CPU's, absolute",
    "memory": "weights where memory runs out, against those where it suffices",
    "waits": "waits of the host in two warm steps",
    "resume": "tensors that differ behind a resumed run",
    "compile": "losses and gradient norms with torch.compile, relative",
}
BAR = ", peak at most 11,444 MiB (12 GB)"
PRECISIONS = {"bf16": "bf16", "fp32": "fp32 with TF32"}


def tables(report: Entry) -> str:
    """All tables, each below its heading; a section without entries has none."""
    parts = [facts(report)]
    parts.append(titled("Checks", checks(report.get("checks", []))))
    entries = [entry for entry in report.get("figures", []) if "error" not in entry]
    for precision, words in PRECISIONS.items():
        parts.append(titled(f"Training steps, {words}", steps(entries, precision)))
    parts.append(titled("A step with torch.compile and without", compiled(entries)))
    parts.append(titled(f"A LoRA's step on Stable Diffusion 1.5{BAR}", lora(entries)))
    parts.append(titled("Sampling, images per second", samples(entries)))
    parts.append(titled("The recipe digits_cd", quality(report.get("quality", []))))
    parts.append(rest(report))
    return "\n\n".join(part for part in parts if part)


def titled(heading: str, table: Table) -> str:
    """A table below its heading; nothing where it has no rows."""
    return f"### {heading}\n\n{markdown(table)}" if table.rows else ""


def facts(report: Entry) -> str:
    """Where and when the report was made."""
    made = f"{report['device']}, {report['date']}, torch {report['torch']}"
    if report["cuda"]:
        made += f", CUDA {report['cuda']}, cuDNN {report['cudnn']}, driver {report['driver']}"
    return f"{made}, Python {report['python']}, commit {report['commit']}."


def checks(entries: Sequence[Entry]) -> Table:
    """For each kind of check how many passed, the worst value, and its limit."""
    rows = []
    for kind, words in CHECKS.items():
        group = [entry for entry in entries if entry["name"].startswith(f"{kind}.")]
        if not group:
            continue
        passed = sum(entry["passed"] for entry in group)
        done = [entry for entry in group if "error" not in entry]
        worst = worst_of(kind, [entry["value"] for entry in done])
        limit = done[0]["limit"] if done else ""
        limit = f"{limit:g}" if isinstance(limit, int | float) else limit
        rows.append([words, f"{passed} of {len(group)}", worst, limit])
    return Table(["check", "passed", "worst", "limit"], rows, texts=1)


def worst_of(kind: str, values: Sequence[Any]) -> str:
    """What stands for all values of a kind of check."""
    if kind.startswith("step."):
        refused = sum("refused" in value for value in values)
        return f"finite, {refused} refused" if refused else "finite"
    found: list[float] = []
    for value in values:
        found += numbers_of(kind, value)
    if not found:
        return ""
    worst = f"{max(found):.2g}"
    if kind == "resume":
        enough = {str(value["enough"]) for value in values} - {"nothing", "None"}
        worst = ", ".join([worst, *sorted(f"with {name}" for name in enough)])
    return worst


def numbers_of(kind: str, value: Any) -> list[float]:
    """The numbers of one check that are held against the limit."""
    match kind:
        case "loss":
            return [value]
        case "sampling":
            return [v for key, v in value.items() if "TF32" not in key]
        case "memory":
            return [value["to told"], value["to whole"]]
        case "resume":
            return [min(one["tensors that differ"] for one in value["tried"].values())]
        case "waits":
            return [value["waits"]]
    return [value["off"]]


def steps(entries: Sequence[Entry], precision: str) -> Table:
    """Time, memory and use of the device, a row for each step and batch."""
    heads = ["step", "batch", "ms", "busy ms", "launches", "images/s", "peak MiB", "of peak FLOP/s"]
    rows = []
    for entry in entries:
        if entry.get("precision") != precision or entry.get("compiled", True):
            continue
        rows.append(
            [
                *(entry["step"], str(entry["batch"]), *timing(entry)),
                number(entry.get("peak_mib")),
                percent(entry.get("utilisation")),
            ]
        )
    return Table(heads, rows, texts=1)


def timing(entry: Entry) -> list[str]:
    """Time of a step, the device's busy time, kernel launches, images per second."""
    return [
        f"{1e3 * entry['s']:.1f}",
        f"{1e3 * entry['busy_s']:.1f}",
        str(entry["launches"]),
        number(entry["images_per_s"]),
    ]


def compiled(entries: Sequence[Entry]) -> Table:
    """Each compiled step below the same step as it is."""
    heads = ["step", "batch", "precision", "compiled", "ms", "busy ms", "launches", "images/s"]
    heads += ["peak MiB", "first step, s"]
    rows = []
    for entry in entries:
        if not entry.get("compiled"):
            continue
        same = ("step", "batch", "precision")
        for other in entries:
            alike = all(other.get(key) == entry[key] for key in same)
            if alike and (other is entry or not other["compiled"]):
                row = [str(other[key]) for key in same]
                row += ["yes" if other["compiled"] else "no", *timing(other)]
                rows.append([*row, number(other.get("peak_mib")), number(other.get("first_s"))])
    return Table(heads, rows, texts=1)


def lora(entries: Sequence[Entry]) -> Table:
    """Time and memory of each precision, and what of the memory is held by which role."""
    found = [entry for entry in entries if "recipe" in entry]
    roles = list(dict.fromkeys(role for entry in found for role in entry["held"]))
    heads = ["recipe", "precision", "side", "batch", "ms", "busy ms", "launches", "images/s"]
    rows = []
    for entry in found:
        row = [entry["recipe"], entry["precision"], str(entry["side"]), str(entry["batch"])]
        row += [*timing(entry), number(entry.get("peak_mib"))]
        rows.append([*row, *(number(entry["held"].get(role)) for role in roles)])
    return Table([*heads, "peak MiB", *roles], rows, texts=2)


def samples(entries: Sequence[Entry]) -> Table:
    """Images per second of each sampler, to images on the host."""
    found: dict[tuple[str, int], dict[str, str]] = {}
    for entry in entries:
        if "sampler" in entry:
            cells = found.setdefault((entry["sampler"], entry["batch"]), {})
            cells[entry["precision"]] = number(entry["images_per_s"])
    rows = []
    for (sampler, batch), cells in found.items():
        rows.append([sampler, str(batch), *(cells.get(p, "") for p in PRECISIONS)])
    return Table(["sampler", "batch", *PRECISIONS.values()], rows, texts=1)


def quality(entries: Sequence[Entry]) -> Table:
    """Training time and what the student reaches, for each precision."""
    heads = ["precision", "steps", "training, s"]
    for evaluations in ("at 1", "at 2"):
        heads += [f"Fréchet distance {evaluations}", f"confirmed {evaluations}"]
    rows = []
    for entry in entries:
        if "error" in entry:
            continue
        row = [entry["precision"], str(entry["steps"]), f"{entry['train_s']:.0f}"]
        for evaluations in ("at 1", "at 2"):
            values = entry[evaluations]
            row += [f"{values['frechet']:.2f}", percent(values["confirmed"])]
        rows.append(row)
    return Table(heads, rows, texts=1)


def rest(report: Entry) -> str:
    """How many entries did not fit into the minutes, and the errors of those that are no checks."""
    lines = []
    if left := report["left_out"]:
        kinds = dict.fromkeys(name.rsplit(".", 2)[0].split(": ")[1] for name in left)
        lines.append(f"Left out for want of time: {len(left)} entries of {', '.join(kinds)}.")
    for section in ("figures", "quality"):
        for entry in report.get(section, []):
            if "error" in entry:
                lines.append(f"{entry['name']}: {entry['error']}")
    return "\n\n".join(lines)


def number(value: float | None) -> str:
    """At least three digits, those before the point all of them; nothing where there is none."""
    if value is None:
        return ""
    after = max(0, 2 - math.floor(math.log10(value))) if value else 0
    return f"{value:,.{after}f}"


def percent(value: float | None) -> str:
    """Of a share, to a tenth; below one to a hundredth."""
    if value is None:
        return ""
    return f"{100 * value:.{1 if value >= 0.01 else 2}f} %"
