"""Unsharp masking of the image before it is degraded (Real-ESRGAN, Sec. 3.4 and 4.1; its USMSharp).

sharp = x + weight (x - blur(x)), blended in where 255 |x - blur(x)| > threshold, with the mask softened by the same
blur. CHW in [0, 1]. Real-ESRGAN also sharpens the targets of its L1 and perceptual losses, but not the GAN's real
images: see `restore_lab.degradation.apply.sharpened_targets`.
Selected by `degradation.usm=true` with degradation=real_esrgan or real_esrgan_light.
"""

from __future__ import annotations

from torch import Tensor

from restore_lab.degradation.blur import filter_image, gaussian_kernel


def usm_sharpen(x_CHW: Tensor, *, weight: float, threshold: float, size: int, sigma: float) -> Tensor:
    """Unsharp masking; `threshold` in 8-bit levels, `size` (odd) and `sigma` of the Gaussian in pixels."""
    kernel = gaussian_kernel(size, sigma)
    residual = x_CHW.double() - filter_image(x_CHW, kernel)
    mask = (residual.abs().mul_(255) > threshold).double()
    soft = filter_image(mask, kernel)
    sharp = (x_CHW + weight * residual).clamp(0, 1)
    return soft * sharp + (1 - soft) * x_CHW
