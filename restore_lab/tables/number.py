"""A cell's number: what records say of a row under a condition, and how two of them compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from restore_lab.evaluation.protocol import Column
from restore_lab.evaluation.statistics import Difference, Values, by_photograph, common_grid, difference

At = tuple[str, str, str]  # row, condition, column


@dataclass(frozen=True, kw_only=True)
class Number:
    """A cell's number: the mean over seeds of the means over images.

    Attributes:
        mean: of the seeds.
        spread: sample deviation over seeds, None for one.
        n: images.
        seeds: how many.
        label: the full label of the metric; None for a count of parameters, which no metric measures.
        code: versions of the code that measured.
        images: value by (seed, key), for paired comparisons; empty for metrics of sets.
        photographs: what an image was cut from, by its key, where it is a part of one.
        kernels: of a Frechet distance over few images: the kernel distance of each seed.
        interval: of one seed's kernel distance over images.
    """

    mean: float
    spread: float | None
    n: int
    seeds: int
    label: Column | None
    code: tuple[str, ...]
    images: Mapping[tuple[int, str], float]
    photographs: Mapping[str, str] = field(default_factory=dict)
    kernels: tuple[float, ...] = ()
    interval: tuple[float, float] | None = None


def compare(a: Number, b: Number) -> Difference | None:
    """a minus b over the images and seeds that both have; None if there are none (a metric of sets)."""
    return difference(a.images, b.images, photographs={**a.photographs, **b.photographs})


def shared_values(numbers: Sequence[Number]) -> Values | None:
    """Values_NSI of the seeds and photographs that all numbers have; None if there are none."""
    found = common_grid([number.images for number in numbers])
    names = {key: name for number in numbers for key, name in number.photographs.items()}
    return by_photograph(found.values_NSI, found.keys, names) if found.keys else None
