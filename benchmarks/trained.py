"""What benchmarks of trained models share: a training's minutes, and a page with a table in it."""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.diffusion.samplers import Ode
from fewstep.diffusion.solvers import Euler
from fewstep.diffusion.times import Trailing
from fewstep.files import read_json, write_bytes, write_json
from fewstep.run import Run, distil

BEGIN, END = "<!-- table -->", "<!-- end of table -->"


def minutes_of(run: Run, folder: Path) -> float:
    """Trains it, and says how long that took, interruptions left out."""
    note = folder.with_name(f"{folder.name}.minutes.json")
    note.parent.mkdir(parents=True, exist_ok=True)
    before = read_json(note) if note.is_file() else 0.0
    begun = time.perf_counter()
    already = False
    try:
        already = distil(run, folder, progress=True).already
    finally:
        minutes = before if already else before + (time.perf_counter() - begun) / 60
        write_json(note, minutes)
    return round(minutes, 1)


def ddim(steps: int) -> Ode:
    """Of the teachers."""
    return Ode(steps, Trailing(), Euler())


def named(values: Mapping[str, float], names: Mapping[str, str]) -> dict[str, float | None]:
    """Measures as a file calls them; None for one that was not taken."""
    found: dict[str, float | None] = {}
    for kind, name in names.items():
        found[name] = round(values[kind], 4) if kind in values else None
    return found


def middle(lines: Sequence[Mapping[str, Any]], key: str, places: int, times: float = 1) -> str:
    """The median, of those that have it."""
    found = [line[key] for line in lines if line.get(key) is not None]
    return f"{times * statistics.median(found):.{places}f}" if found else ""


def write_table(page: Path, table: str) -> None:
    """Puts it in the place of the page's old one."""
    head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    text = f"{head}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"
    write_bytes(page, text.encode())
