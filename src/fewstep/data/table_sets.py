"""Rows of a table that are of sets, as a column says: those of the training set are used."""

from typing import Any

from fewstep.data.labels import listed
from fewstep.data.splits import TRAINING, Told, set_of

NAMES = ("split",)


def training_rows(values: Any, what: str) -> tuple[list[int], str] | None:
    """The places of the rows of the training set, by pyarrow's column, and what is said of the
    others; of the only set that there is, where there is one. None where the column does not speak
    of sets. ValueError, with `what` names the column, where it does in some rows only, or of
    several sets without one for training.
    """
    from pyarrow import compute, types

    tests = types.is_string, types.is_large_string, types.is_string_view
    if not any(test(values.type) for test in tests):
        return None
    counts = {one["values"]: one["counts"] for one in compute.value_counts(values).to_pylist()}
    told = {name: set_of(name or "") for name in counts}
    if not any(told.values()):
        return None
    taken = _taken(told, what)
    left = [f"{name}: {count}" for name, count in sorted(counts.items()) if name not in taken]
    number = sum(count for name, count in counts.items() if name not in taken)
    note = f"beside {listed(taken)}: {number} rows ({', '.join(left)})" if left else ""
    return [i for i, name in enumerate(values.to_pylist()) if name in taken], note


def _taken(told: dict[str, Told | None], what: str) -> list[str]:
    """The names of the training set, or of the only one."""
    if odd := [name for name, found in told.items() if not found]:
        known = next(name for name, found in told.items() if found)
        raise ValueError(
            f"{what} names the set {known} and in other rows {odd[0]!r}, which is none: "
            "sets=none reads all rows"
        )
    training = [name for name, found in told.items() if found and found.kind == TRAINING]
    if not training and len(told) > 1:
        raise ValueError(
            f"{what} names several sets, none of them for training, {listed(sorted(told))}: "
            "sets=none reads all rows"
        )
    return sorted(training or told)
