"""Pareto fronts and hypervolumes in two dimensions, with bootstrap uncertainty; higher is better in both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from restore_lab.evaluation.statistics import redraw

Points = NDArray[np.float64]


def pareto(points_N2: Points) -> NDArray[np.bool_]:
    """Mask of the points that no other point dominates; equal points do not dominate each other."""
    others, own = points_N2[None], points_N2[:, None]
    beaten_NN = np.all(others >= own, axis=2) & np.any(others > own, axis=2)
    return np.logical_not(np.any(beaten_NN, axis=1))


def hypervolume(points_N2: Points, reference_2: Points) -> float:
    """The area that the points dominate, down to the reference; points below it in either coordinate add nothing."""
    area, height = 0.0, float(reference_2[1])
    above = points_N2[(points_N2 > reference_2).all(axis=1)]
    for first, second in above[np.argsort(-above[:, 0])]:
        area += float(first - reference_2[0]) * max(float(second) - height, 0.0)
        height = max(height, float(second))
    return area


@dataclass(frozen=True, kw_only=True)
class FrontBootstrap:
    """A Pareto front under the bootstrap over seeds and images.

    Attributes:
        share_N: share of draws in which each point is on the front.
        low, high: 95 percent interval of the hypervolume.
    """

    share_N: Points
    low: float
    high: float


def bootstrap(values_NSI2: Points, reference_2: Points, *, draws: int = 1000) -> FrontBootstrap:
    """Fronts and hypervolumes of means over resampled seeds and images; all points share each draw.

    Args:
        values_NSI2: both metrics per point, seed and image.
        reference_2: reference point of the hypervolume.
        draws: number of bootstrap draws.
    """
    means_DN2 = np.stack([redraw(values_NSI2[..., axis], draws=draws) for axis in (0, 1)], axis=2)
    low, high = np.percentile([hypervolume(mean_N2, reference_2) for mean_N2 in means_DN2], [2.5, 97.5])
    share_N = np.mean([pareto(mean_N2) for mean_N2 in means_DN2], axis=0)
    return FrontBootstrap(share_N=share_N, low=float(low), high=float(high))
