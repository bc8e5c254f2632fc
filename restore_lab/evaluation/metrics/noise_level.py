"""How noisy an image looks, without a reference: Immerkaer's estimate of its noise, and its total variation.

Immerkaer sees the noise of single pixels, total variation also the blotches that a codec leaves of it.

"Fast Noise Variance Estimation" (Immerkaer 1996): sigma = sqrt(pi / 2) * mean |I * N| / 6, with the difference of two
Laplacians N = [1 -2 1; -2 4 -2; 1 -2 1], which is blind to constant, linear and most edge structure. On luma, in units
of [0, 1]. Texture counts as noise in both: compare restorations of one image. Selected by `metrics=following`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from restore_lab.evaluation.protocol import ImageMetric, luma

FULL_RANGE = 255 / 219  # luma's studio range, 16 to 235, stretched back
LAPLACIANS = ((1.0, -2.0, 1.0), (-2.0, 4.0, -2.0), (1.0, -2.0, 1.0))


class NoiseLevel(ImageMetric):
    """The estimated sigma; less is smoother, which is better only up to the picture's own texture."""

    id = "noise_level"
    weights = "closed form"
    higher_is_better = False
    min_size = 3

    def __call__(self, restored_BCHW: Tensor, reference_BCHW: Tensor | None, captions: Sequence[str] | None) -> Tensor:
        y_B1HW = luma(restored_BCHW.double()) * FULL_RANGE
        kernel = torch.tensor(LAPLACIANS, dtype=y_B1HW.dtype, device=y_B1HW.device)[None, None]
        response = torch.nn.functional.conv2d(y_B1HW, kernel).abs().flatten(1).mean(dim=1)
        return math.sqrt(math.pi / 2) * response / 6


class TotalVariation(ImageMetric):
    """Mean absolute difference between neighbours, down and across summed, of luma in [0, 1]; less is smoother."""

    id = "variation"
    weights = "closed form"
    higher_is_better = False
    min_size = 2

    def __call__(self, restored_BCHW: Tensor, reference_BCHW: Tensor | None, captions: Sequence[str] | None) -> Tensor:
        y_B1HW = luma(restored_BCHW.double()) * FULL_RANGE
        return sum(y_B1HW.diff(dim=dim).abs().mean(dim=(1, 2, 3)) for dim in (-2, -1))
