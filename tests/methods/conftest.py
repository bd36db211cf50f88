"""What the tests of the methods share."""

from tests.training.conftest import folder

__all__ = ["folder"]
