"""Resizing, with the modes of Real-ESRGAN (area, bilinear, bicubic) and an antialiased bicubic.

"bicubic" samples without a low-pass filter, as Real-ESRGAN does; "bicubic_antialias" widens the kernel when
downsampling, as MATLAB and Pillow do, and is the "x4" of test protocols. CHW, not clamped.
Selected by the `modes`, `down` and `up` arguments in conf/degradation/*.yaml.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

RESIZE_MODES = ("area", "bilinear", "bicubic", "bicubic_antialias")


def resize(x_CHW: Tensor, *, height: int, width: int, mode: str) -> Tensor:
    """Resize to height x width pixels; an image of that size is returned unchanged.

    Raises:
        ValueError: for an unknown mode.
    """
    if mode not in RESIZE_MODES:
        raise ValueError(f"unknown resize mode {mode!r}; there are {', '.join(RESIZE_MODES)}")
    if tuple(x_CHW.shape[1:]) == (height, width):
        return x_CHW
    x_BCHW = x_CHW[None]
    if mode == "area":
        return F.interpolate(x_BCHW, size=(height, width), mode="area")[0]
    kernel = mode.removesuffix("_antialias")
    antialias = mode.endswith("_antialias")
    return F.interpolate(x_BCHW, size=(height, width), mode=kernel, align_corners=False, antialias=antialias)[0]
