"""Pixel metrics against a reference: PSNR, SSIM, MS-SSIM. Images are BCHW in [0, 1], prepared by the protocol.

PSNR: 10 log10(1 / MSE) over all pixels and channels of an image.
SSIM: Wang et al. 2004, Eq. (13); Gaussian window 11x11, sigma 1.5, K = 0.01 and 0.03, positions where the window fits,
population covariance, mean over channels: as BasicSR, MATLAB and scikit-image with its Gaussian weights.
MS-SSIM: Wang et al. 2003, five scales, by torchmetrics.
Config: metrics=fidelity, or one entry of metrics.metrics in conf/metrics/*.yaml.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from restore_lab.evaluation.protocol import Colour, ImageMetric, MetricUnavailable

SCALES = 5


def psnr(restored_BCHW: Tensor, reference_BCHW: Tensor, *, ceiling: float = 100.0) -> Tensor:
    """PSNR_B in dB for images in [0, 1]; identical images, which have none, give `ceiling`."""
    error_B = (restored_BCHW.double() - reference_BCHW.double()).square().flatten(1).mean(dim=1)
    return (-10.0 * error_B.log10()).clamp(max=ceiling)


def ssim(
    restored_BCHW: Tensor,
    reference_BCHW: Tensor,
    *,
    window: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Tensor:
    """SSIM_B for images in [0, 1].

    Raises:
        ValueError: if the window does not fit into the image.
    """
    if min(restored_BCHW.shape[-2:]) < window:
        height, width = restored_BCHW.shape[-2:]
        raise ValueError(f"ssim: a window of {window} does not fit into a {width}x{height} image")
    x, y = restored_BCHW.double(), reference_BCHW.double()
    mean_x, mean_y = (_blur(image, window, sigma) for image in (x, y))
    var_x = _blur(x * x, window, sigma) - mean_x.square()
    var_y = _blur(y * y, window, sigma) - mean_y.square()
    cov = _blur(x * y, window, sigma) - mean_x * mean_y
    c1, c2 = k1**2, k2**2
    # Eq. (13)
    index = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return index.flatten(1).mean(dim=1)


def _blur(image_BCHW: Tensor, window: int, sigma: float) -> Tensor:
    """Separable Gaussian, valid positions only."""
    offsets = torch.arange(window, dtype=image_BCHW.dtype, device=image_BCHW.device) - (window - 1) / 2
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    channels = image_BCHW.shape[1]
    rows = F.conv2d(image_BCHW, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(rows, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


class Psnr(ImageMetric):
    """PSNR in dB. `colour` overrides the protocol's (the id then says so); `ceiling` is the value of equal images."""

    pixel = True

    def __init__(self, *, colour: Colour | None = None, ceiling: float = 100.0) -> None:
        self.id = _named("psnr", colour)
        self.colour = colour
        self.ceiling = ceiling

    def __call__(self, restored_BCHW: Tensor, reference_BCHW: Tensor | None, captions: Sequence[str] | None) -> Tensor:
        return psnr(restored_BCHW, _given(reference_BCHW, self.id), ceiling=self.ceiling)


class Ssim(ImageMetric):
    """SSIM with a Gaussian window. `colour` overrides the protocol's."""

    pixel = True

    def __init__(
        self, *, colour: Colour | None = None, window: int = 11, sigma: float = 1.5, k1: float = 0.01, k2: float = 0.03
    ) -> None:
        self.id = _named("ssim", colour)
        self.colour = colour
        self.min_size = window
        self.window, self.sigma, self.k1, self.k2 = window, sigma, k1, k2
        self.weights = "" if (window, sigma, k1, k2) == (11, 1.5, 0.01, 0.03) else f"{window}/{sigma}/{k1}/{k2}"

    def __call__(self, restored_BCHW: Tensor, reference_BCHW: Tensor | None, captions: Sequence[str] | None) -> Tensor:
        reference = _given(reference_BCHW, self.id)
        return ssim(restored_BCHW, reference, window=self.window, sigma=self.sigma, k1=self.k1, k2=self.k2)


class MsSsim(ImageMetric):
    """MS-SSIM by torchmetrics, five scales, which needs 176 pixels for the window of 11."""

    pixel = True

    def __init__(self, *, colour: Colour | None = None, window: int = 11, sigma: float = 1.5) -> None:
        self.id = _named("ms_ssim", colour)
        self.colour = colour
        self.window, self.sigma = window, sigma
        self.min_size = window * (SCALES - 1) ** 2
        self.weights = "torchmetrics" if (window, sigma) == (11, 1.5) else f"torchmetrics, {window}/{sigma}"

    def __call__(self, restored_BCHW: Tensor, reference_BCHW: Tensor | None, captions: Sequence[str] | None) -> Tensor:
        from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

        values_B = multiscale_structural_similarity_index_measure(
            restored_BCHW,
            _given(reference_BCHW, self.id),
            kernel_size=self.window,
            sigma=self.sigma,
            reduction="none",
            data_range=1.0,
        )
        if not isinstance(values_B, Tensor):
            raise MetricUnavailable(f"{self.id}: torchmetrics returned {type(values_B).__name__} in place of a tensor")
        return values_B.reshape(-1)


def _given(reference_BCHW: Tensor | None, metric: str) -> Tensor:
    if reference_BCHW is None:
        raise ValueError(f"{metric} compares with a reference and got none; leave it out for images without one")
    return reference_BCHW


def _named(metric: str, colour: Colour | None) -> str:
    """psnr follows the protocol; psnr_y and psnr_rgb stay what they say under any."""
    if colour not in (None, "rgb", "y"):
        raise ValueError(f"{metric}: colour {colour!r} is unknown; choose rgb, y or null for the protocol's")
    return metric if colour is None else f"{metric}_{colour}"
