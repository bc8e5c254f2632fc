"""What differs between rows of one record, judged image by image.

Rows of a record are measured on the same images from the same starting noise, so their differences vary far less than
their means. The interval is the bootstrap's over images (percentiles); one that contains zero shows no difference.
Order is judged by Spearman's rank correlation, image by image and for the means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from restore_lab.evaluation.records import DECODED_LQ, ROBUST_LQ
from restore_lab.random import rng

if TYPE_CHECKING:
    from restore_lab.evaluation.records import Results


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Row minus baseline on one metric: mean over images, 95 percent interval, images."""

    row: str
    baseline: str
    metric: str
    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        verdict = "" if self.low <= 0 <= self.high else "  *"
        return (
            f"{self.metric}: {self.row} - {self.baseline} = {self.mean:+.4g} "
            f"[{self.low:+.4g}, {self.high:+.4g}], n = {self.n}{verdict}"
        )


def values(results: Results, *, row: str, metric: str) -> dict[str, float]:
    """The value of each image, by key."""
    return {i.key: i.value for i in results.images if i.row == row and i.metric == metric and i.value is not None}


def difference(results: Results, *, row: str, baseline: str, metric: str, draws: int = 2000) -> Difference:
    """Row minus baseline over the images that both have.

    Raises:
        ValueError: if they share no image.
    """
    a, b = (values(results, row=name, metric=metric) for name in (row, baseline))
    shared = sorted(a.keys() & b.keys())
    if not shared:
        raise ValueError(f"{row} and {baseline} share no image with a value of {metric}")
    deltas = np.array([a[key] - b[key] for key in shared])
    picks = rng("bootstrap", metric, row, baseline).integers(len(deltas), size=(draws, len(deltas)))
    low, high = np.percentile(deltas[picks].mean(axis=1), [2.5, 97.5])
    return Difference(
        row=row,
        baseline=baseline,
        metric=metric,
        mean=float(deltas.mean()),
        low=float(low),
        high=float(high),
        n=len(deltas),
    )


def rank_correlation(results: Results, *, rows: Sequence[str], metric: str) -> tuple[float, float]:
    """Spearman's rank correlation of a metric with the order of the rows: of the means, and the mean over images.

    Images whose values are all equal have no order and do not count.

    Raises:
        ValueError: if fewer than three rows are given, or no image has them all.
    """
    from scipy.stats import spearmanr

    if len(rows) < 3:
        raise ValueError(f"a rank correlation needs at least 3 rows, not {len(rows)}")
    table = [values(results, row=row, metric=metric) for row in rows]
    shared = sorted(set.intersection(*(set(column) for column in table)))
    if not shared:
        raise ValueError(f"no image has a value of {metric} in all of {', '.join(rows)}")
    order = np.arange(len(rows))
    matrix = np.array([[column[key] for column in table] for key in shared])
    each = [spearmanr(order, line).statistic for line in matrix if np.ptp(line) > 0]
    return float(spearmanr(order, matrix.mean(axis=0)).statistic), float(np.mean(each)) if each else float("nan")


def report(results: Results, *, variants: Sequence[str], ordered: Sequence[str]) -> list[str]:
    """Lines that compare the first variant with D(E(LQ)), each other with the first, and ranks along `ordered`.

    A robust encoder's reconstruction stands between: it is compared with D(E(LQ)), and the first variant with it.

    A "*" marks an interval that does not contain zero.
    """
    if not variants:  # no metric could measure them
        return []
    metrics = list(dict.fromkeys(image.metric for image in results.images))
    robust = any(image.row == ROBUST_LQ for image in results.images)
    pairs = [(ROBUST_LQ, DECODED_LQ), (variants[0], ROBUST_LQ)] if robust else []
    pairs += [(variants[0], DECODED_LQ), *((row, variants[0]) for row in variants[1:])]
    lines = [
        str(difference(results, row=row, baseline=baseline, metric=metric))
        for metric in metrics
        for row, baseline in pairs
        if values(results, row=row, metric=metric).keys() & values(results, row=baseline, metric=metric).keys()
    ]
    for metric in metrics if ordered else ():
        means, each = rank_correlation(results, rows=ordered, metric=metric)
        along = f"{ordered[0]} .. {ordered[-1]}"
        lines.append(f"{metric}: rank correlation along {along}: means {means:+.3f}, images {each:+.3f}")
    return lines
