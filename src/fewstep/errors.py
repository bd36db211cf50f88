"""What can go wrong for a user, with the exit code that the command line gives it.

A wrong value, a missing or damaged file is an ordinary ValueError or OSError and ends with code 2.
"""


class RefusedError(ValueError):
    """A run or checkpoint that must not be continued as asked: exit code 3."""


class DivergedError(RuntimeError):
    """Too many steps with a non-finite loss or gradient: exit code 4."""
