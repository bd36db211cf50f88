"""Settings of all tests: one thread per worker, no network, fixed seeds."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "agg"

import socket
import tempfile

import pytest
import torch

from fewstep import plugins

torch.set_num_threads(1)

# What `datasets` converts it keeps; a test run shall leave nothing in the user's cache.
_CACHE = tempfile.TemporaryDirectory(prefix="fewstep-tests-")
os.environ["HF_DATASETS_CACHE"] = _CACHE.name


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_plugin_stays():
    """What a test loads is not listed in the next one."""
    before = dict(plugins._loaded)
    yield
    plugins._loaded.clear()
    plugins._loaded.update(before)


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """No test may reach the network."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to connect to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
