"""A cell's number: a metric of a row under a condition, and the comparison of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from restore_lab.evaluation.protocol import ColumnLabel
from restore_lab.evaluation.statistics import Difference, Values, by_photograph, common_grid, difference

CellKey = tuple[str, str, str]  # row, condition, column


@dataclass(frozen=True, kw_only=True)
class Number:
    """A cell's number: the mean over seeds of the means over images.

    Attributes:
        mean: mean over seeds.
        spread: sample deviation over seeds; None for one seed.
        n: number of images.
        seeds: number of seeds.
        label: the metric's full label; None for a column of `restore-lab describe`.
        code: versions of the code that measured it.
        images: value by (seed, key), for paired comparisons; empty for set metrics.
        photographs: the photograph that an image is a crop of, by the image's key.
        kernels: the kernel distance per seed, where a Frechet distance is over few images.
        interval: interval over images of one seed's kernel distance.
    """

    mean: float
    spread: float | None
    n: int
    seeds: int
    label: ColumnLabel | None
    code: tuple[str, ...]
    images: Mapping[tuple[int, str], float]
    photographs: Mapping[str, str] = field(default_factory=dict)
    kernels: tuple[float, ...] = ()
    interval: tuple[float, float] | None = None


def compare_numbers(a: Number, b: Number) -> Difference | None:
    """a minus b over shared images and seeds; None if there are none (a set metric)."""
    return difference(a.images, b.images, photographs={**a.photographs, **b.photographs})


def shared_values(numbers: Sequence[Number]) -> Values | None:
    """Values_NSI over the seeds and photographs that all numbers share; None if there are none."""
    found = common_grid([number.images for number in numbers])
    names = {key: name for number in numbers for key, name in number.photographs.items()}
    return by_photograph(found.values_NSI, found.keys, names) if found.keys else None
