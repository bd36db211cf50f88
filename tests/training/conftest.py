"""What the tests of the loop share."""

import os
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def folder():
    """An empty folder, in memory where the system offers that: hundreds of synced files cost
    seconds on a disk.
    """
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)
