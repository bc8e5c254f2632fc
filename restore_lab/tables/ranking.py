"""Which cells of a column are marked: the best and the second, as far as they can be told apart."""

from __future__ import annotations

from collections.abc import Mapping

from restore_lab.tables.number import Number, compare, shared_values
from restore_lab.tables.numbers import Measured

BEST, SECOND = "best", "second"


def marks(table: Measured) -> Mapping[tuple[str, str, str], str]:
    """ "best" and "second" by cell: the rows that are no worse than the best one by a paired interval, and then those
    that are no worse than the best of the rest. A column whose rows cannot be told apart at all has no marks, nor has
    one with a single row; references (the LQ, the codec's rows) take no part. Where there are no intervals, too few
    images or a metric of sets, there are no marks.
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
    """The best row and those that cannot be told from it; the best by the images and seeds that all rows have."""
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
    found = compare(a, b)
    return found is None or not found.clear
