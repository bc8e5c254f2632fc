"""How noisy an image looks: Immerkaer's estimate of the standard deviation of its noise, without a reference.

"Fast Noise Variance Estimation" (Immerkaer 1996): sigma = sqrt(pi / 2) * mean |I * N| / 6, with the difference of two
Laplacians N = [1 -2 1; -2 4 -2; 1 -2 1], which is blind to constant, linear and most edge structure. On luma, in units
of [0, 1]. Fine texture counts as noise: compare restorations of one image. Selected by `metrics=following`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from restore_lab.evaluation.protocol import ImageMetric, luma

LAPLACIANS = ((1.0, -2.0, 1.0), (-2.0, 4.0, -2.0), (1.0, -2.0, 1.0))


class NoiseLevel(ImageMetric):
    """The estimated sigma; less is smoother, which is better only up to the picture's own texture."""

    id = "noise_level"
    weights = "closed form"
    higher_is_better = False
    min_size = 3

    def __call__(self, restored_BCHW: Tensor, reference_BCHW: Tensor | None, captions: Sequence[str] | None) -> Tensor:
        y_B1HW = luma(restored_BCHW).double()
        kernel = torch.tensor(LAPLACIANS, dtype=y_B1HW.dtype, device=y_B1HW.device)[None, None]
        response = torch.nn.functional.conv2d(y_B1HW, kernel).abs().flatten(1).mean(dim=1)
        return math.sqrt(math.pi / 2) * response / 6
