"""How long a process waits with its error, so that the one that caused it is heard."""

import pytest

from fewstep.cli.main import patience

CLOSED = RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer")
SILENT = RuntimeError("[gloo] Timed out waiting 10000ms for recv operation to complete")
WATCHDOG = RuntimeError("[Rank 0] NCCL watchdog: Work timed out in blocking wait")


@pytest.mark.parametrize("number", [0, 1, 7])
def test_one_after_another(monkeypatch, number):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", str(number))
    assert patience(ValueError("x")) == (5.0 if number else 0.0)
    assert patience(CLOSED) > 5.0  # behind the error of the one that closed it
    for silent in (SILENT, WATCHDOG):  # there is no other error, and `timeout` went by already
        assert patience(silent) == (2.0 if number else 0.0)


def test_alone_nobody_waits(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert patience(CLOSED) == patience(SILENT) == 0.0
