"""Paired comparisons of rows of one record, image by image.

Rows of a record are measured on the same images from the same initial noise, so their differences vary far less than
their means. Intervals are those of statistics.py; order is measured by Spearman's rank correlation, per image and for
the means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from restore_lab.evaluation.records import DECODED_LQ, ROBUST_LQ
from restore_lab.evaluation.statistics import difference, photograph, rank_correlation

if TYPE_CHECKING:
    from restore_lab.evaluation.records import Results


def values(results: Results, *, row: str, metric: str) -> dict[str, float]:
    """A metric's values of one row, by image key."""
    return {i.key: i.value for i in results.images if i.row == row and i.metric == metric and i.value is not None}


def order_correlation(results: Results, *, rows: Sequence[str], metric: str) -> tuple[float, float]:
    """Spearman's rank correlation of a metric with the order of the rows: of the means, and the mean over images.

    Images whose values are all equal are ignored.

    Raises:
        ValueError: if fewer than three rows are given, or no image has them all.
    """
    if len(rows) < 3:
        raise ValueError(f"a rank correlation needs at least 3 rows, not {len(rows)}")
    table = [values(results, row=row, metric=metric) for row in rows]
    shared = sorted(set.intersection(*(set(column) for column in table)))
    if not shared:
        raise ValueError(f"no image has a value of {metric} in all of {', '.join(rows)}")
    order = np.arange(len(rows))
    matrix = np.array([[column[key] for column in table] for key in shared])
    each = [rank_correlation(order, line) for line in matrix if np.ptp(line) > 0]
    return rank_correlation(order, matrix.mean(axis=0)), float(np.mean(each)) if each else float("nan")


def report_comparisons(
    results: Results, *, prompt_sets: Sequence[str], ordered: Sequence[str], settings: Mapping[str, object]
) -> list[str]:
    """Lines that compare the first prompt set with D(E(LQ)) and each other with the first, and ranks along `ordered`.

    With a robust encoder its reconstruction is compared with D(E(LQ)), and the first with the reconstruction.
    A "*" marks an interval that does not contain zero; the last line explains the intervals.

    Args:
        results: of one record.
        prompt_sets: rows of the method.
        ordered: rows in an order to compare the metrics with, such as increasing strength.
        settings: of the record, which tell whether images are crops of one photograph.
    """
    if not prompt_sets:  # no metric had values for them
        return []
    metrics = list(dict.fromkeys(image.metric for image in results.images))
    robust = any(image.row == ROBUST_LQ for image in results.images)
    pairs = [(ROBUST_LQ, DECODED_LQ), (prompt_sets[0], ROBUST_LQ)] if robust else []
    pairs += [(prompt_sets[0], DECODED_LQ), *((row, prompt_sets[0]) for row in prompt_sets[1:])]
    photographs = {image.key: photograph(image.key, settings) for image in results.images}
    lines, any_interval = [], False
    for metric in metrics:
        for row, baseline in pairs:
            a, b = (
                {(0, key): value for key, value in values(results, row=name, metric=metric).items()}
                for name in (row, baseline)
            )
            found = difference(a, b, photographs=photographs)
            if found is not None:
                any_interval |= found.low is not None
                lines.append(f"{metric}: {row} - {baseline} = {found}{'  *' if found.clear else ''}")
    if any_interval:
        lines.append("[95 percent] over images: other trainings and seeds may differ; * leaves out zero")
    for metric in metrics if ordered else ():
        means, each = order_correlation(results, rows=ordered, metric=metric)
        along = f"{ordered[0]} .. {ordered[-1]}"
        lines.append(f"{metric}: rank correlation along {along}: means {means:+.3f}, images {each:+.3f}")
    return lines
