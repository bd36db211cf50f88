"""The tests of several processes run alone: `make test` starts pytest once more for them, without
workers beside it.
"""

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def _alone():
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("two processes want both cores: run `pytest -m processes` without -n")
