"""Unsharp masking of the image before it is degraded (Real-ESRGAN, Sec. 3.4 and 4.1; its USMSharp).

sharp = x + weight (x - blur(x)), taken only where 255 |x - blur(x)| > threshold, through the same blur as a soft mask.
CHW in [0, 1]. In Real-ESRGAN the L1 and perceptual targets are sharpened too, the GAN's is not: see
`restore_lab.degradation.apply.sharpened_targets`.
Selected by `degradation.usm=true` with degradation=real_esrgan or real_esrgan_light.
"""

from __future__ import annotations

from torch import Tensor

from restore_lab.degradation.blur import filter_image, gaussian_kernel


def usm_sharpen(x_CHW: Tensor, *, weight: float, threshold: float, size: int, sigma: float) -> Tensor:
    """Sharpen by `weight`; `threshold` in 8-bit levels, Gaussian of `size` pixels (odd) and `sigma` pixels."""
    kernel = gaussian_kernel(size, sigma)
    residual = x_CHW.double() - filter_image(x_CHW, kernel)
    mask = (residual.abs().mul_(255) > threshold).double()
    soft = filter_image(mask, kernel)
    sharp = (x_CHW + weight * residual).clamp(0, 1)
    return soft * sharp + (1 - soft) * x_CHW
