"""Which cells of a column are marked: the best and the second, as far as they can be told apart."""

from __future__ import annotations

from collections.abc import Mapping

from restore_lab.tables.measured import Measured, Number, by_image, judged

BEST, SECOND = "best", "second"


def marks(table: Measured) -> Mapping[tuple[str, str, str], str]:
    """ "best" and "second" by cell: the rows that are no worse than the best one by a paired interval, and then those
    that are no worse than the best of the rest. A column whose rows cannot be told apart at all has no marks, nor has
    one with a single row; references (the LQ, the codec's rows) take no part. Metrics of sets have no intervals: there
    plain order marks one cell each.
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
    keys, values_NI = by_image(list(rows.values()))
    level = dict(zip(rows, values_NI.mean(axis=1), strict=True)) if keys else {n: rows[n].mean for n in rows}
    order = sorted(rows, key=level.__getitem__, reverse=more)
    best = rows[order[0]]
    return [order[0], *(name for name in order[1:] if _tied(best, rows[name]))]


def _tied(a: Number, b: Number) -> bool:
    difference = judged(a, b)
    return a.mean == b.mean if difference is None else not difference.tells_apart
