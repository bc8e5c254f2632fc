"""Pareto fronts and their hypervolume in two dimensions, and how sure both are; more is better in both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from restore_lab.evaluation.statistics import redraw

Points = NDArray[np.float64]


def pareto(points_N2: Points) -> NDArray[np.bool_]:
    """Which points no other beats, by being at least as good in both and better in one; equal points stand together."""
    others, own = points_N2[None], points_N2[:, None]
    beaten_NN = np.all(others >= own, axis=2) & np.any(others > own, axis=2)
    return np.logical_not(np.any(beaten_NN, axis=1))


def hypervolume(points_N2: Points, reference_2: Points) -> float:
    """The area between the reference and what the points dominate; points that are worse in one than it add nothing."""
    area, height = 0.0, float(reference_2[1])
    above = points_N2[(points_N2 > reference_2).all(axis=1)]
    for first, second in above[np.argsort(-above[:, 0])]:
        area += float(first - reference_2[0]) * max(float(second) - height, 0.0)
        height = max(height, float(second))
    return area


@dataclass(frozen=True, kw_only=True)
class Sure:
    """What the bootstrap over seeds and images says of a front.

    Attributes:
        share_N: of the draws in which a point is on the front.
        low, high: 95 percent interval of the hypervolume.
    """

    share_N: Points
    low: float
    high: float


def resampled(values_NSI2: Points, reference_2: Points, *, draws: int = 1000) -> Sure:
    """Fronts and hypervolumes of the means over seeds and images drawn anew, the same for every point.

    Args:
        values_NSI2: both numbers of every point, seed and image.
        reference_2: of the hypervolume.
        draws: how often.
    """
    means_DN2 = np.stack([redraw(values_NSI2[..., axis], draws=draws) for axis in (0, 1)], axis=2)
    low, high = np.percentile([hypervolume(mean_N2, reference_2) for mean_N2 in means_DN2], [2.5, 97.5])
    share_N = np.mean([pareto(mean_N2) for mean_N2 in means_DN2], axis=0)
    return Sure(share_N=share_N, low=float(low), high=float(high))
