"""Frechet distance between two sets of features (FID when the features are Inception's).

|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), Heusel et al. 2017, Eq. (6). With centred features A, B (n x D) the trace
of the square root is the nuclear norm of A B^T / sqrt((n1 - 1)(n2 - 1)): exact, real, and stable with fewer images than
features, unlike a matrix square root. Without shrinkage the value decreases with n: compare at equal n only.
Config: an entry of metrics.metrics that is a SetMetric (ClipFrechet in clip.py, Fid in paper.py).
"""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(first_ND: Tensor, second_ND: Tensor) -> float:
    """The Frechet distance, with unbiased covariances (n - 1), as is usual for FID.

    Raises:
        ValueError: with fewer than two images in a set, or features of different width.
    """
    for features in (first_ND, second_ND):
        if features.ndim != 2 or len(features) < 2:
            shape = tuple(features.shape)
            raise ValueError(
                f"a Frechet distance needs at least 2 images in each set, features of shape (n, D); got {shape}"
            )
    if first_ND.shape[1] != second_ND.shape[1]:
        raise ValueError(f"features of width {first_ND.shape[1]} and {second_ND.shape[1]} are not from one network")
    a, b = first_ND.double(), second_ND.double()
    mean_gap = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    root_a, root_b = _root(a), _root(b)
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = mean_gap + root_a.square().sum() + root_b.square().sum() - 2.0 * cross
    return max(float(distance), 0.0)


def _root(features_ND: Tensor) -> Tensor:
    """R with R^T R = the covariance, min(n, D) rows."""
    centred = (features_ND - features_ND.mean(dim=0)) / (len(features_ND) - 1) ** 0.5
    if len(centred) > centred.shape[1]:
        return torch.linalg.qr(centred, mode="r").R
    return centred
