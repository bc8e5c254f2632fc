"""No-reference measures of noise: Immerkaer's noise estimate, and total variation.

Immerkaer's estimate measures per-pixel noise, total variation also the blotches that a codec makes of noise.

"Fast Noise Variance Estimation" (Immerkaer 1996): sigma = sqrt(pi / 2) * mean |I * N| / 6, with the difference of two
Laplacians N = [1 -2 1; -2 4 -2; 1 -2 1], insensitive to constant and linear regions and most edges. On luma in [0, 1].
Texture counts as noise in both: compare restorations of one image only. Selected by `metrics=following`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from restore_lab.evaluation.protocol import ImageMetric, luma

FULL_RANGE = 255 / 219  # from luma's studio range, 16 to 235
LAPLACIANS = ((1.0, -2.0, 1.0), (-2.0, 4.0, -2.0), (1.0, -2.0, 1.0))


class NoiseLevel(ImageMetric):
    """The estimated sigma; less is smoother, which is better only down to the level of the image's own texture."""

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
    """Mean absolute differences of vertical and horizontal neighbours, summed, on luma in [0, 1]."""

    id = "variation"
    weights = "closed form"
    higher_is_better = False
    min_size = 2

    def __call__(self, restored_BCHW: Tensor, reference_BCHW: Tensor | None, captions: Sequence[str] | None) -> Tensor:
        y_B1HW = luma(restored_BCHW.double()) * FULL_RANGE
        vertical_B, horizontal_B = (y_B1HW.diff(dim=dim).abs().mean(dim=(1, 2, 3)) for dim in (-2, -1))
        return vertical_B + horizontal_B
