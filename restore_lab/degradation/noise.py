"""Gaussian and Poisson noise, colour or grey (Real-ESRGAN, Sec. 3.1), drawn from a recorded seed.

The random field is always drawn on the CPU, so that a GPU adds the same noise. Poisson counts are looked up in a table
of quantiles, indexed by a level of 0..255 and a 14-bit uniform number: a rejection sampler would draw different numbers
for rates that differ in the last bit. The table truncates the tails at probability 2^-15.
Images CHW float64 in [0, 1]; the result is clipped to [0, 1]. Sigma is in units of the [0, 1] range.
Selected by the noise stages in conf/degradation/*.yaml.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from restore_lab.random import generator

LUMA = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale, which Real-ESRGAN calls
QUANTILES = 1 << 14


def gaussian_noise(x_CHW: Tensor, *, sigma: float, grey: bool, seed: int) -> Tensor:
    """Add N(0, sigma^2), with one field for all channels if `grey`, and clip."""
    channels, height, width = x_CHW.shape
    field = torch.randn(1 if grey else channels, height, width, generator=generator(seed, "gaussian"))
    return x_CHW.add(field.to(x_CHW.device), alpha=sigma).clamp_(0, 1)  # Real-ESRGAN, Sec. 3.1


def poisson_noise(x_CHW: Tensor, *, scale: float, grey: bool, seed: int) -> Tensor:
    """Add scale * (Poisson(v * peak) / peak - v), with v the 8-bit image (its luma if `grey`), and clip.

    As in Real-ESRGAN's code, peak is the number of distinct levels in the image, rounded up to a power of two.
    """
    source = x_CHW
    if grey:
        weights = torch.tensor(LUMA, dtype=x_CHW.dtype, device=x_CHW.device).view(3, 1, 1)
        source = (x_CHW * weights).sum(0, keepdim=True)
    level = source.clamp(0, 1).mul_(255).round_().int()
    distinct = int((torch.bincount(level.flatten(), minlength=256) > 0).sum())
    peak = 1 << math.ceil(math.log2(max(distinct, 1)))
    uniform = torch.randint(0, QUANTILES, source.shape, generator=generator(seed, "poisson"), dtype=torch.int16)
    table = _noise_table(peak).to(x_CHW.device)
    place = level.mul_(QUANTILES).add_(uniform.to(x_CHW.device))
    noise = table.index_select(0, place.flatten()).view(place.shape)
    return x_CHW.add(noise, alpha=scale).clamp_(0, 1)  # Real-ESRGAN, Sec. 3.1


@lru_cache(maxsize=9)
def _noise_table(peak: int) -> Tensor:
    """Flat table of (quantile(Poisson(level / 255 * peak)) / peak - level / 255), 256 levels x QUANTILES, float32.

    Quantiles are taken at the midpoints of QUANTILES equal slices of probability. A count occupies the slices whose
    midpoints lie between the cumulative probabilities of the previous count and its own.
    """
    rate = torch.arange(256, dtype=torch.float64) / 255 * peak
    count = torch.arange(math.ceil(peak + 12 * math.sqrt(peak)) + 2, dtype=torch.float64)
    log_p = torch.special.xlogy(count[None], rate[:, None]) - rate[:, None] - torch.lgamma(count + 1)[None]
    filled = (torch.exp(log_p).cumsum(1) * QUANTILES + 0.5).floor().long()
    filled[:, -1] = QUANTILES  # the last count takes the remaining tail
    slices = filled.diff(dim=1, prepend=torch.zeros(256, 1, dtype=torch.long))
    noise = (count[None] / peak - rate[:, None] / peak).float()
    return noise.flatten().repeat_interleave(slices.flatten())
