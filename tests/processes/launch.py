"""Starting processes that train together, and making sure that none outlives its test."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT = 300.0


@contextlib.contextmanager
def memory() -> Iterator[Path]:
    """An empty folder, in memory where the system offers that."""
    base = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=base if os.access(base, os.W_OK) else None) as name:
        yield Path(name)


@contextlib.contextmanager
def torchrun(*words: object, cwd: Path = ROOT) -> Iterator[subprocess.Popen[str]]:
    """torchrun with two processes; what they print comes through one pipe, and nothing is left
    behind the block.
    """
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    process = subprocess.Popen(
        [*command, *map(str, words)],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # it ends its workers; killed it would leave them
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
        process.communicate()
