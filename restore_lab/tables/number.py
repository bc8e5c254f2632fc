"""A cell's number: what records say of a row under a condition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from restore_lab.evaluation.protocol import Column

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
        images: value by (seed, key), for paired judgements; empty for metrics of sets.
        kernel: of a Frechet distance over few images: kernel distance and its interval's ends, means over seeds.
    """

    mean: float
    spread: float | None
    n: int
    seeds: int
    label: Column | None
    code: tuple[str, ...]
    images: Mapping[tuple[int, str], float]
    kernel: tuple[float, float, float] | None = None
