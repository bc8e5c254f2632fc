"""The marks of a column's cells: best and second, as far as the measurements separate them."""

from __future__ import annotations

from collections.abc import Mapping

from restore_lab.tables.number import Number, compare_numbers, shared_values
from restore_lab.tables.numbers import TableNumbers

BEST, SECOND = "best", "second"


def marks(table: TableNumbers) -> Mapping[tuple[str, str, str], str]:
    """ "best" and "second" by cell.

    Best are the rows whose paired interval to the best row includes zero, second likewise among the rest. A column has
    no marks if all rows tie, if it has a single row, or without intervals (too few images, or a set metric). References
    (the LQ, the codec's rows) are not ranked.
    """
    found: dict[tuple[str, str, str], str] = {}
    for condition in table.spec.conditions.values():
        for title in condition.columns:
            column = table.spec.columns[title]
            rows = {
                name: table.numbers[name, condition.name, title]
                for name in table.spec.rows
                if column.metric and (name, condition.name, title) in table.numbers
            }
            for rank in (BEST, SECOND):
                group = _leaders(rows, more=column.metric_higher_is_better)
                if len(group) == len(rows):
                    break
                found |= {(name, condition.name, title): rank for name in group}
                rows = {name: number for name, number in rows.items() if name not in group}
                if len(rows) == 1 and rank == BEST:
                    found[next(iter(rows)), condition.name, title] = SECOND
                    break
    return found


def _leaders(rows: Mapping[str, Number], *, more: bool) -> list[str]:
    """The best row, by the images and seeds that all rows share, and the rows that tie with it."""
    if not rows:
        return []
    values_NSI = shared_values(list(rows.values()))
    if values_NSI is None:
        return list(rows)
    level = dict(zip(rows, values_NSI.mean(axis=(1, 2)), strict=True))
    order = sorted(rows, key=level.__getitem__, reverse=more)
    best = rows[order[0]]
    return [order[0], *(name for name in order[1:] if _tied(best, rows[name]))]


def _tied(a: Number, b: Number) -> bool:
    found = compare_numbers(a, b)
    return found is None or not found.clear
