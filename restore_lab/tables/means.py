"""Conditions that average others: "average of Low-light, Haze, RealSnow, ..." (Diff-Restorer, Tables II to V).

All conditions have equal weight, whatever their number of images; a set metric is averaged over its values.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from restore_lab.tables.number import CellKey, Number
from restore_lab.tables.spec import Spec


def average_conditions(spec: Spec, numbers: Mapping[CellKey, Number]) -> dict[CellKey, Number]:
    """The numbers of the averaged conditions, for every row that has all of their parts."""
    found: dict[CellKey, Number] = {}
    rows = dict.fromkeys(row for row, _, _ in numbers)
    for condition in spec.conditions.values():
        for row in rows if condition.mean else ():
            for title in condition.columns:
                parts = {
                    other: numbers[row, other, title] for other in condition.mean if (row, other, title) in numbers
                }
                if len(parts) == len(condition.mean) and (number := mean_of(parts)) is not None:
                    found[row, condition.name, title] = number
    return found


def mean_of(parts: Mapping[str, Number]) -> Number | None:
    """The mean of a metric over conditions; None if their metric labels differ.

    The images of all conditions are pooled, their deviations scaled so that the pooled mean equals this mean and
    differences between conditions add no spread; rows are then compared image by image as in any condition. The same
    photograph under several conditions counts as one.
    """
    labels = [number.label for number in parts.values()]
    if None in labels or len({replace(label, count=0, size="").id for label in labels if label}) > 1:
        return None
    first, sizes = labels[0], {label.size for label in labels if label}
    assert first is not None
    mean = statistics.fmean(number.mean for number in parts.values())
    total = sum(len(number.images) for number in parts.values())
    images = {
        (seed, f"{name}/{key}"): mean + (value - number.mean) * total / (len(parts) * len(number.images))
        for name, number in parts.items()
        for (seed, key), value in number.images.items()
    }
    names = {f"{name}/{key}": n.photographs.get(key, key) for name, n in parts.items() for _, key in n.images}
    return Number(
        mean=mean,
        spread=_spread(list(parts.values())),
        n=sum(number.n for number in parts.values()),
        seeds=min(number.seeds for number in parts.values()),
        label=replace(first, count=sum(n.n for n in parts.values()), size=sizes.pop() if len(sizes) == 1 else "mixed"),
        code=tuple(dict.fromkeys(code for number in parts.values() for code in number.code)),
        images=images,
        photographs=names,
    )


def _spread(numbers: Sequence[Number]) -> float | None:
    """The deviation of the mean over seeds, from the images; None for one seed and for set metrics."""
    seeds = sorted({seed for number in numbers for seed, _ in number.images})
    of_seed = [[[value for (s, _), value in n.images.items() if s == seed] for n in numbers] for seed in seeds]
    if len(seeds) < 2 or not all(values for parts in of_seed for values in parts):
        return None
    return statistics.stdev(statistics.fmean(map(statistics.fmean, parts)) for parts in of_seed)
