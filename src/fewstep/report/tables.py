"""Results as a table: on a terminal, in a page, in Markdown."""

from collections.abc import Sequence
from typing import NamedTuple

from fewstep.metrics.results import Result, scales_of


class Table(NamedTuple):
    """Heads of columns, cells row by row, how many columns at the left hold text (the others hold
    numbers), and the role of each row.
    """

    columns: list[str]
    rows: list[list[str]]
    texts: int = 2
    roles: Sequence[str] = ()


def table(results: Sequence[Result]) -> Table:
    """One row each; the columns in the middle are the measures that any of them has. How many
    images they are of stands in a column where not all have the same.
    """
    scales = scales_of(results)
    heads = ["model", "solver", "steps", "evaluations"]
    counted = len({result.protocol.num for result in results}) > 1
    if counted:
        heads.append("images")
    heads += [scale.heading for scale in scales.values()]
    rows = []
    for result in results:
        row = [result.model, result.solver or ""]
        row += [str(result.steps or ""), str(result.evaluations or "")]
        if counted:
            row.append(f"{result.protocol.num:,}")
        for kind, scale in scales.items():
            undefined = kind in result.protocol.undefined
            half = result.protocol.intervals.get(kind)
            row.append("–" if undefined else scale.shown(result.values.get(kind), half))
        rate = result.images_per_second
        row.append("" if rate is None else f"{rate:,.0f}")
        rows.append(row)
    return Table([*heads, "images/s"], rows, roles=[result.role for result in results])


def markdown(table: Table) -> str:
    """The table in Markdown, text to the left and numbers to the right."""
    numbers = len(table.columns) - table.texts
    lines = [_line(table.columns), "|" + "---|" * table.texts + "--:|" * numbers]
    lines += [_line(row) for row in table.rows]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
