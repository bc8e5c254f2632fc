"""Kernel distance between two sets of features (KID when the features are Inception's), with a bootstrap interval.

The squared maximum mean discrepancy with the kernel (x . y / D + 1)^3 of Binkowski et al. 2018, section 4, over all
images instead of the mean over subsets: Gretton et al. 2012, Lemma 6, a U-statistic over pairs of different images.
A restored image is never compared with its own original, to which it is closer than to an independent sample. Unlike a
Frechet distance it does not decrease with n, and as a mean over pairs it has a bootstrap interval: images are resampled
with replacement, restored and original together, without pairs of one image. Times 1000, as tables report it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from restore_lab.evaluation.statistics import MIN_IMAGES
from restore_lab.random import rng

KERNEL_ID = {"fid": "kid", "tiny_fd": "tiny_kd"}  # Frechet distance -> kernel distance of the same features
FEW_IMAGES = 1000  # below, the kernel distance is reported with the Frechet distance
SCALE = 1000.0


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """The value and its 95 percent interval over images, times 1000; for two samples of one distribution near zero, or
    negative. No interval below `MIN_IMAGES` images."""

    value: float
    interval: tuple[float, float] | None


def kernel_distance(first_ND: Tensor, second_ND: Tensor, *, draws: int = 1000) -> KernelDistance:
    """The distance of two sets of equal size, with row i of both from one image.

    Raises:
        ValueError: with fewer than two images, or sets of different size or width.
    """
    if first_ND.shape != second_ND.shape or first_ND.ndim != 2 or len(first_ND) < 2:
        shapes = f"{tuple(first_ND.shape)} and {tuple(second_ND.shape)}"
        raise ValueError(f"a kernel distance needs two sets of equally many images, at least 2, (n, D); got {shapes}")
    a, b = first_ND.double(), second_ND.double()
    across = _kernel(a, b)
    pairs_NN = (_kernel(a, a) + _kernel(b, b) - across - across.T).fill_diagonal_(0.0).numpy()
    n = len(a)
    value = float(_weighted(np.ones((1, n)), pairs_NN)[0])
    if n < MIN_IMAGES:
        return KernelDistance(value=value, interval=None)
    picks = rng("kernel distance", n).integers(n, size=(draws, n))
    counts_SN = np.stack([np.bincount(pick, minlength=n) for pick in picks]).astype(np.float64)
    low, high = np.percentile(_weighted(counts_SN, pairs_NN), [2.5, 97.5])
    return KernelDistance(value=value, interval=(float(low), float(high)))


def _kernel(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    return (a_ND @ b_ND.T / a_ND.shape[1] + 1.0) ** 3


def _weighted(counts_SN: np.ndarray, pairs_NN: np.ndarray) -> np.ndarray:
    """The distance per row of counts, how often each image was drawn; 0 for a draw of a single image."""
    total = counts_SN.sum(axis=1) ** 2 - (counts_SN**2).sum(axis=1)
    return SCALE * np.einsum("si,ij,sj->s", counts_SN, pairs_NN, counts_SN, optimize=True) / np.maximum(total, 1.0)
