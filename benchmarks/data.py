"""What data of any size costs: time to the first rows, memory, and what workers give.

    python benchmarks/data.py [--pictures 20000] [--rows 1000000] [--out docs/results/data.json]

On made data, in a folder of its own that is removed: JPEG pictures of 64 × 64 in class folders, and
one Parquet table of small PNG pictures. Every measurement is a process of its own. start: seconds
from the start of Python to the first batch of 128 rows, the first time and with the index of the
first time beside the run. grown: MiB of memory that is the process's own (not files mapped into it)
beyond what it has once everything is imported. Pictures per second with one and with two workers,
as medians of interleaved repeats; read: decoded and handed over; encoded: also moved and encoded by
the main process, which on a machine of two cores shares them with the workers.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median

BATCH = 128
BATCHES = {"folder": 50, "table": 50, "rate": 300}


def main() -> None:
    """Makes the data, measures, writes and prints the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=3)
    options = parser.parse_args()
    if options.child:
        kind, folder, workers = options.child
        print(json.dumps(measured(kind, Path(folder), int(workers))))
        return
    with tempfile.TemporaryDirectory() as home:
        found = figures(Path(home), options.pictures, options.rows, options.repeats)
    print(json.dumps(found, indent=2))
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def figures(home: Path, pictures: int, rows: int, repeats: int) -> dict[str, object]:
    """All measurements, by name."""
    write_folder(home / "folder", pictures)
    write_table(home / "table", rows)
    found: dict[str, object] = {"date": str(date.today()), "pictures": pictures, "rows": rows}
    for kind in ("folder", "table"):
        first = child(kind, home / kind, 0)
        second = child(kind, home / kind, 0)
        found[kind] = {
            "start, first": round(first["start"], 2),
            "start, second": round(second["start"], 2),
            "grown": round(second["grown"], 1),
            "grown, behind 50 batches": round(second["grown at the end"], 1),
        }
    seen: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for _ in range(repeats):
        for workers, measured_so_far in seen.items():
            measured_so_far.append(child("rate", home / "folder", workers))
    for what in ("read", "encoded"):
        one, two = (median([m[what] for m in seen[workers]]) for workers in (1, 2))
        found[f"pictures per second, {what}"] = {
            "1 worker": round(one),
            "2 workers": round(two),
            "ratio": round(two / one, 2),
        }
    return found


def child(kind: str, folder: Path, workers: int) -> dict[str, float]:
    """One measurement, in a process of its own."""
    command = [sys.executable, __file__, "--child", kind, str(folder), str(workers)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(kind: str, folder: Path, workers: int) -> dict[str, float]:
    """The figures of one process: it reads batches as a training does."""
    began = time.perf_counter()
    import torch

    from fewstep.data.folder import Folder
    from fewstep.data.reader import Reader
    from fewstep.data.stream import Stream
    from fewstep.data.table import Table
    from fewstep.diffusion.draws import Draws
    from fewstep.models.codec import Pixels
    from fewstep.models.conditioner import Labels

    torch.set_num_threads(1)
    if kind == "table":
        import datasets  # noqa: F401
    base = own_memory()
    if kind == "table":
        source = Table(path=str(folder), size=16, channels="rgb", split="all", workers=workers)
    else:
        source = Folder(path=str(folder), split="all", workers=workers)
    dataset = source.choose(source.read(folder.parent / f"index-{kind}"))
    codec, conditioner = Pixels().build(), Labels(dataset.classes).build()
    stream = Stream(dataset, codec, conditioner, 0, BATCH, workers=workers)
    rows = range(BATCH)
    stream(0, rows, Draws(0, rows))
    figures = {"start": time.perf_counter() - began, "grown": own_memory() - base}
    started = time.perf_counter()
    for number in range(1, BATCHES[kind] + 1):
        stream(number, rows, Draws(0, rows))
    figures["encoded"] = BATCHES[kind] * BATCH / (time.perf_counter() - started)
    figures["grown at the end"] = own_memory() - base
    stream.close()
    if kind == "rate":
        reader = Reader(dataset, stream.ids, rows, workers)
        reader(0, rows, pinned=False)
        started = time.perf_counter()
        for number in range(1, BATCHES[kind] + 1):
            reader(number, rows, pinned=False)
        figures["read"] = BATCHES[kind] * BATCH / (time.perf_counter() - started)
        reader.close()
    return figures


def own_memory() -> float:
    """MiB of this process that are not files mapped into it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise OSError("no RssAnon in /proc/self/status")


def write_folder(folder: Path, count: int) -> None:
    """JPEG pictures of 64 × 64 in ten class folders."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for i in range(count):
        small = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        file = folder / str(i % 10) / f"{i:06}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small).resize((64, 64)).save(file, quality=90)


def write_table(folder: Path, count: int) -> None:
    """A Parquet table of labelled PNG pictures of 16 × 16, the same thousand again and again."""
    import numpy as np
    import pyarrow
    from PIL import Image
    from pyarrow import parquet

    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    contents = []
    for _ in range(1000):
        out = io.BytesIO()
        pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(out, "PNG")
        contents.append({"bytes": out.getvalue(), "path": None})
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    block = pyarrow.table({"image": pyarrow.array(contents, kind), "label": np.arange(1000) % 10})
    with parquet.ParquetWriter(folder / "train.parquet", block.schema) as writer:
        for _ in range(max(1, count // 1000)):
            writer.write_table(block)


if __name__ == "__main__":
    main()
