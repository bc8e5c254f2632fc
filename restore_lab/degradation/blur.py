"""Blur kernels and filtering: Real-ESRGAN's six kernel families and its sinc filter (Wang et al. 2021, Sec. 3.1-3.3).

With r2 = x^T S^-1 x (S from sigma_x, sigma_y and a rotation) and the kernel scaled to sum 1:
gaussian exp(-r2 / 2), generalized exp(-r2^beta / 2), plateau 1 / (1 + r2^beta), sinc w J1(w r) / (2 pi r).
Kernels are k x k float64, images CHW float64. A kernel is isotropic if sigma_x = sigma_y. Images are filtered by FFT
with reflect padding, at a cost nearly independent of the kernel size, and in float64, so that CPU and GPU differ by far
less than the half level that would change an 8-bit rounding.
Selected by the blur stages in conf/degradation/*.yaml.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def _grid(size: int) -> tuple[Tensor, Tensor]:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"blur kernel size {size} is not a positive odd number; use 7, 9, ... 21")
    axis = torch.arange(size, dtype=torch.float64) - size // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return y, x


def _mahalanobis(size: int, sigma_x: float, sigma_y: float, rotation: float) -> Tensor:
    """Squared distance x^T S^-1 x on the kernel grid, S = R diag(sigma_x^2, sigma_y^2) R^T."""
    if min(sigma_x, sigma_y) <= 0:
        raise ValueError(f"blur sigma must be positive, got {sigma_x} and {sigma_y} (pixels)")
    y, x = _grid(size)
    along = x * math.cos(rotation) + y * math.sin(rotation)
    across = y * math.cos(rotation) - x * math.sin(rotation)
    return (along / sigma_x) ** 2 + (across / sigma_y) ** 2


def gaussian_kernel(size: int, sigma_x: float, sigma_y: float | None = None, *, rotation: float = 0.0) -> Tensor:
    """Gaussian kernel, size x size, sum 1. Sigmas in pixels, rotation in radians."""
    return generalized_kernel(size, sigma_x, sigma_y, rotation=rotation, beta=1.0)


def generalized_kernel(
    size: int, sigma_x: float, sigma_y: float | None = None, *, rotation: float = 0.0, beta: float
) -> Tensor:
    """Generalized Gaussian kernel: the Gaussian at beta 1, more peaked below 1, flatter above."""
    kernel = torch.exp(-0.5 * _mahalanobis(size, sigma_x, sigma_y or sigma_x, rotation) ** beta)
    return kernel / kernel.sum()  # Real-ESRGAN, Sec. 3.1


def plateau_kernel(
    size: int, sigma_x: float, sigma_y: float | None = None, *, rotation: float = 0.0, beta: float
) -> Tensor:
    """Plateau-shaped kernel 1 / (1 + r2^beta)."""
    kernel = 1.0 / (1.0 + _mahalanobis(size, sigma_x, sigma_y or sigma_x, rotation) ** beta)
    return kernel / kernel.sum()  # Real-ESRGAN, Sec. 3.1


def sinc_kernel(size: int, *, cutoff: float) -> Tensor:
    """Circular low-pass (sinc) kernel, which causes ringing; `cutoff` in radians per pixel, pi passes all."""
    y, x = _grid(size)
    r = torch.sqrt(x**2 + y**2)
    centre = r == 0
    ring = cutoff * torch.special.bessel_j1(cutoff * r) / (2 * math.pi * r.masked_fill(centre, 1.0))
    kernel = torch.where(centre, torch.full_like(r, cutoff**2 / (4 * math.pi)), ring)
    return kernel / kernel.sum()  # Real-ESRGAN, Sec. 3.3


def kernel_from(params: Mapping[str, Any]) -> Tensor:
    """The kernel of a recorded "blur" step, from its parameters.

    Raises:
        ValueError: if the family is unknown.
    """
    family, size = params["family"], params["size"]
    if family == "sinc":
        return sinc_kernel(size, cutoff=params["cutoff"])
    sigma_x, sigma_y, rotation = params["sigma_x"], params["sigma_y"], params["rotation"]
    match family:
        case "gaussian":
            return gaussian_kernel(size, sigma_x, sigma_y, rotation=rotation)
        case "generalized":
            return generalized_kernel(size, sigma_x, sigma_y, rotation=rotation, beta=params["beta"])
        case "plateau":
            return plateau_kernel(size, sigma_x, sigma_y, rotation=rotation, beta=params["beta"])
    raise ValueError(f"unknown blur family {family!r}; there are gaussian, generalized, plateau and sinc")


def _pad_reflect(x_CHW: Tensor, pad: int) -> Tensor:
    """Reflect padding of rows and columns; unlike torch's, `pad` may exceed the image."""
    if pad < min(x_CHW.shape[1:]):
        return F.pad(x_CHW[None], (pad, pad, pad, pad), mode="reflect")[0]
    rows, columns = (_reflected(length, pad, x_CHW.device) for length in x_CHW.shape[1:])
    return x_CHW.index_select(1, rows).index_select(2, columns)


def _reflected(length: int, pad: int, device: torch.device) -> Tensor:
    """Indices that pad an axis of any length by reflection without repeating the edge."""
    index = torch.arange(-pad, length + pad, device=device)
    if length == 1:
        return torch.zeros_like(index)
    index = index.abs() % (2 * (length - 1))
    return torch.where(index < length, index, 2 * (length - 1) - index)


def _fft_length(length: int) -> int:
    """The next even length with no prime factors but 2, 3 and 5."""
    length += length % 2
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 2


def filter_image(x_CHW: Tensor, kernel: Tensor) -> Tensor:
    """Cross-correlation of each channel with the kernel, reflect padding; CHW float64 of the same size."""
    _, height, width = x_CHW.shape
    pad = kernel.shape[-1] // 2
    shape = (_fft_length(height + 2 * pad), _fft_length(width + 2 * pad))
    rows = torch.fft.rfft(kernel.to(x_CHW.device, torch.float64), n=shape[1])  # the kernel's rows only, not the padding
    response = torch.fft.fft(rows, n=shape[0], dim=0).conj().resolve_conj()
    spectrum = torch.empty_like(response)
    filtered_CHW = torch.empty_like(x_CHW, dtype=torch.float64)
    for channel, x_HW in zip(filtered_CHW, x_CHW.double(), strict=True):  # one channel at a time fits the cache
        torch.fft.rfft2(_pad_reflect(x_HW[None], pad)[0], s=shape, out=spectrum)
        spectrum *= response
        # Wrap-around affects only the last `2 * pad` rows and columns, which the crop removes.
        channel.copy_(torch.fft.irfft2(spectrum, s=shape)[:height, :width])
    return filtered_CHW
