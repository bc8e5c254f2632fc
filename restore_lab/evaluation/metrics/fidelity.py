"""Pixel metrics against a reference: PSNR, SSIM, MS-SSIM. Images are BCHW in [0, 1], prepared by the protocol.

PSNR: 10 log10(1 / MSE) over all pixels and channels of an image.
SSIM: Wang et al. 2004, Eq. (13); Gaussian window 11x11, sigma 1.5, K = 0.01 and 0.03, valid positions only, population
covariance, mean over channels: as BasicSR, and scikit-image with Gaussian weights.
pyiqa's (0.1.16) are different metrics, `psnr_pyiqa` and `ssim_pyiqa`, which the scripts of several papers report: PSNR
adds 1e-8 to the error; SSIM rounds its input, luma too, to 8-bit levels and clamps the contrast-structure term
(2 cov + C2) / (var + var + C2) at 0 before the product.
MS-SSIM: Wang et al. 2003, five scales, by torchmetrics.
Config: metrics=fidelity, or one entry of metrics.metrics in conf/metrics/*.yaml.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from restore_lab.config.validate import check_arguments
from restore_lab.evaluation.protocol import Colour, ImageMetric, MetricUnavailable

SCALES = 5
PYIQA_EPSILON = 1e-8
Implementation = Literal["basicsr", "pyiqa"]


def psnr(restored_BCHW: Tensor, reference_BCHW: Tensor, *, ceiling: float = 100.0, epsilon: float = 0.0) -> Tensor:
    """PSNR_B in dB for images in [0, 1], at most `ceiling`, the value of identical images."""
    error_B = (restored_BCHW.double() - reference_BCHW.double()).square().flatten(1).mean(dim=1)
    return (-10.0 * (error_B + epsilon).log10()).clamp(max=ceiling)


def ssim(
    restored_BCHW: Tensor,
    reference_BCHW: Tensor,
    *,
    window: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    clamp: bool = False,
) -> Tensor:
    """SSIM_B for images in [0, 1]; `clamp` clamps the contrast-structure term at 0.

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
    structure = (2 * cov + c2) / (var_x + var_y + c2)
    if clamp:
        structure = structure.clamp(min=0.0)
    index = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1) * structure  # Eq. (13)
    return index.flatten(1).mean(dim=1)


def _blur(image_BCHW: Tensor, window: int, sigma: float) -> Tensor:
    """Separable Gaussian filter, valid positions only."""
    offsets = torch.arange(window, dtype=image_BCHW.dtype, device=image_BCHW.device) - (window - 1) / 2
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    channels = image_BCHW.shape[1]
    rows = F.conv2d(image_BCHW, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(rows, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


@check_arguments
class Psnr(ImageMetric):
    """PSNR in dB.

    Args (constructor):
        colour: overrides the protocol's and is part of the id; null for the protocol's.
        ceiling: the value of identical images; pyiqa's is 80 dB.
        implementation: basicsr or pyiqa.
        column: id of the column, if a script reports the metric by another name; null for the metric's name.
    """

    pixel = True

    def __init__(
        self,
        *,
        colour: Colour | None = None,
        ceiling: float = 100.0,
        implementation: Implementation = "basicsr",
        column: str | None = None,
    ) -> None:
        self.id, self.weights = _named("psnr", colour, implementation, column)
        self.colour = colour
        self.ceiling = ceiling
        self.epsilon = PYIQA_EPSILON if implementation == "pyiqa" else 0.0

    def __call__(self, restored_BCHW: Tensor, reference_BCHW: Tensor | None, captions: Sequence[str] | None) -> Tensor:
        reference = _given(reference_BCHW, self.id)
        return psnr(restored_BCHW, reference, ceiling=self.ceiling, epsilon=self.epsilon)


@check_arguments
class Ssim(ImageMetric):
    """SSIM with a Gaussian window. `colour`, `implementation` and `column` as in `Psnr`."""

    pixel = True

    def __init__(
        self,
        *,
        colour: Colour | None = None,
        window: int = 11,
        sigma: float = 1.5,
        k1: float = 0.01,
        k2: float = 0.03,
        implementation: Implementation = "basicsr",
        column: str | None = None,
    ) -> None:
        self.id, self.weights = _named("ssim", colour, implementation, column)
        self.colour = colour
        self.min_size = window
        self.window, self.sigma, self.k1, self.k2 = window, sigma, k1, k2
        self.as_pyiqa = implementation == "pyiqa"
        if (window, sigma, k1, k2) != (11, 1.5, 0.01, 0.03):
            self.weights = ", ".join(filter(None, [self.weights, f"{window}/{sigma}/{k1}/{k2}"]))

    def __call__(self, restored_BCHW: Tensor, reference_BCHW: Tensor | None, captions: Sequence[str] | None) -> Tensor:
        images = restored_BCHW, _given(reference_BCHW, self.id)
        if self.as_pyiqa:
            images = tuple((image * 255.0).round().double() / 255.0 for image in images)  # in float32, as pyiqa
        return ssim(*images, window=self.window, sigma=self.sigma, k1=self.k1, k2=self.k2, clamp=self.as_pyiqa)


@check_arguments
class MsSsim(ImageMetric):
    """MS-SSIM by torchmetrics with five scales; a window of 11 needs images of 176 pixels."""

    pixel = True

    def __init__(self, *, colour: Colour | None = None, window: int = 11, sigma: float = 1.5) -> None:
        self.id, _ = _named("ms_ssim", colour, "basicsr", None)
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


def _named(metric: str, colour: Colour | None, implementation: str, column: str | None) -> tuple[str, str]:
    """A metric's id (the head of its column) and the `weights` of its label.

    psnr uses the protocol's colour; psnr_y and psnr_rgb do not depend on it. The label of pyiqa's PSNR is psnr_pyiqa
    for any column name.
    """
    name = "_".join([metric, *([] if implementation == "basicsr" else [implementation]), *([colour] if colour else [])])
    return column or name, "" if implementation == "basicsr" and column in (None, name) else name
