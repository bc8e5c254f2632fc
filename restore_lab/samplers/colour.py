"""Colour correction: a restored image with the colours of a reference. `sampler/colour=none|adain|wavelet`.

AdaIN (Huang & Belongie 2017) matches the mean and the standard deviation of each channel to the reference. Wavelet
(StableSR, Wang et al. 2023) adds the image's high frequencies to the reference's low frequencies, separated by the a
trous kernel [1 2 1]^2 / 16 at dilations 1, 2, 4, ... Both follow SUPIR's release. Images (B, 3, H, W) in [0, 1];
results may leave the range.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-5  # added to the variances
STRIP = 2**20  # pixels of an image that are processed at once


def uses_reference(colour: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Whether a colour correction reads the reference."""
    return getattr(colour, "func", colour) is not keep


def keep(image_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
    """The image, unchanged."""
    return image_BCHW


def adain(image_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
    """The image with the reference's mean and standard deviation in every channel."""
    mean, std = _moments(image_BCHW)
    mean_ref, std_ref = _moments(reference_BCHW)
    return _in_strips(lambda image, _: (image - mean) / std * std_ref + mean_ref, image_BCHW, reference_BCHW, halo=0)


def wavelet(image_BCHW: Tensor, reference_BCHW: Tensor, *, levels: int) -> Tensor:
    """The image's high bands added to the reference's low band.

    Args:
        levels: number of smoothing levels; 5 in the release, which keeps the image's structures of up to 32 pixels.
    """

    def recolour(image: Tensor, reference: Tensor) -> Tensor:
        return image - low_band(image, levels=levels) + low_band(reference, levels=levels)

    return _in_strips(recolour, image_BCHW, reference_BCHW, halo=2**levels - 1)  # radius of the stacked kernels


def low_band(image_BCHW: Tensor, *, levels: int) -> Tensor:
    """The low frequencies of an image: `levels` a trous convolutions, with replicate padding."""
    row = torch.tensor([1.0, 2.0, 1.0], dtype=image_BCHW.dtype, device=image_BCHW.device) / 4
    channels = image_BCHW.shape[1]
    kernel = torch.outer(row, row).expand(channels, 1, 3, 3)
    for level in range(levels):
        reach = 2**level
        padded = F.pad(image_BCHW, (reach,) * 4, mode="replicate")
        image_BCHW = F.conv2d(padded, kernel, dilation=reach, groups=channels)
    return image_BCHW


def _moments(image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(image_BCHW, dim=(2, 3), keepdim=True)
    return mean, (variance + EPS).sqrt()


def _in_strips(
    recolour: Callable[[Tensor, Tensor], Tensor], image_BCHW: Tensor, reference_BCHW: Tensor, *, halo: int
) -> Tensor:
    """`recolour`, in strips of rows for large images; each strip is read with `halo` rows above and below."""
    height, width = image_BCHW.shape[-2:]
    rows = max(halo, STRIP // width, 1)
    if height <= rows or image_BCHW.requires_grad:
        return recolour(image_BCHW, reference_BCHW)
    out_BCHW = torch.empty_like(image_BCHW)
    for top in range(0, height, rows):
        above, below = max(0, top - halo), min(height, top + rows + halo)
        strip = recolour(image_BCHW[..., above:below, :], reference_BCHW[..., above:below, :])
        out_BCHW[..., top : top + rows, :] = strip[..., top - above : top - above + rows, :]
    return out_BCHW
