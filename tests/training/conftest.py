"""What the tests of the loop share."""

import os
import tempfile
from pathlib import Path

import pytest
import torch

from fewstep.training.checkpoint import CheckpointContent, Checkpoints


@pytest.fixture
def folder():
    """An empty folder, in memory where the system offers that: hundreds of synced files cost
    seconds on a disk.
    """
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture
def said():
    return []


@pytest.fixture
def store(folder, said):
    """Checkpoints of steps 1, 2 and 3."""
    made = Checkpoints(folder, keep=3, say=said.append)
    for step in (1, 2, 3):
        made.save(step, saved(step))
    return made


def saved(step):
    generator = torch.Generator().manual_seed(step)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    tensors = {
        "nets": {"student/0.weight": draw(3, 2), "student/0.bias": draw(3)},
        "ema": {"student/0.9/0.weight": draw(3, 2)},
        "optim": {"student/0/step": torch.tensor(float(step))},
    }
    return CheckpointContent(tensors, {"batches": 3 * step, "data": "an é"})
