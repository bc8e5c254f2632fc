"""Synthetic haze, rain, raindrops, snow, low light and motion blur, in place of Diff-Restorer's paired datasets.

Models, with J the clean image in [0, 1]: haze I = J t + A (1 - t), t = exp(-beta d) (as in RESIDE); rain and snow
I = J + m (1 - J) with a mask m of streaks or flakes; raindrops show the scene upside down, blurred and brighter,
blended by a soft mask; low light I = beta (alpha J)^gamma plus noise (as in MBLLEN); motion blur averages along a path
in linear light (gamma 2.2, as GoPro averages frames). Lengths are fractions of the image's short side, so that the
effect does not depend on resolution. Random fields are drawn on the CPU from the step's seed. CHW float64.
Selected by degradation=haze|rain|raindrop|snow|low_light|motion_blur|diff_restorer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from restore_lab.degradation.blur import filter_image, gaussian_kernel
from restore_lab.random import generator

DISPLAY_GAMMA = 2.2


def smooth_field(height: int, width: int, *, cells: int, seed: int, name: str) -> Tensor:
    """A smooth random field (1, height, width) from 0 to 1, with about `cells` bumps along each side."""
    coarse = torch.rand(1, 1, cells + 2, cells + 2, generator=generator(seed, name), dtype=torch.float64)
    field = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)[0]
    low, high = field.amin(), field.amax()
    return (field - low) / (high - low).clamp_min(1e-12)


def haze(x_CHW: Tensor, *, beta: float, airlight: float, seed: int) -> Tensor:
    """Atmospheric scattering; depth grows towards the upper edge, with a smooth random part.

    Args:
        x_CHW: the clean image.
        beta: scattering coefficient at a maximal depth of 1; RESIDE's indoor set has 0.6 to 1.8.
        airlight: A, the airlight in [0, 1].
        seed: of the depth map.
    """
    _, height, width = x_CHW.shape
    ramp = torch.linspace(1, 0, height, dtype=torch.float64).view(1, height, 1)
    depth = 0.5 * ramp + 0.5 * smooth_field(height, width, cells=3, seed=seed, name="depth")
    t = torch.exp(-beta * depth).to(x_CHW.device)
    return x_CHW * t + airlight * (1 - t)  # as in RESIDE


def rain(
    x_CHW: Tensor, *, density: float, length: float, angle: float, opacity: float, veil: float, seed: int
) -> Tensor:
    """Bright streaks in one direction, and a veil of distant rain.

    Args:
        x_CHW: the clean image.
        density: fraction of pixels where a streak begins.
        length: of a streak, as a fraction of the short side.
        angle: from the vertical, in radians.
        opacity: maximum over a streak, in [0, 1].
        veil: opacity of the uniform grey veil, in [0, 1].
        seed: of the positions.
    """
    _, height, width = x_CHW.shape
    starts = torch.rand(1, height, width, generator=generator(seed, "streaks"), dtype=torch.float64) < density
    taps = max(3, round(length * min(height, width)))
    streaks = filter_image(starts.double(), line_kernel(taps, angle=angle + math.pi / 2))
    mask = (opacity * streaks / streaks.max().clamp_min(1e-12)).to(x_CHW.device)
    veiled = x_CHW + veil * (0.6 - x_CHW)
    return veiled + mask * (1 - veiled)


def snow(x_CHW: Tensor, *, density: float, size: float, opacity: float, seed: int) -> Tensor:
    """White flakes of three sizes: many distant ones, few near ones.

    Args:
        x_CHW: the clean image.
        density: fraction of pixels with a flake of the smallest size; the larger sizes are 6 and 36 times rarer.
        size: standard deviation of the largest flakes, as a fraction of the short side.
        opacity: at the centre of a flake, in [0, 1].
        seed: of the positions.
    """
    _, height, width = x_CHW.shape
    mask = torch.zeros(1, height, width, dtype=torch.float64)
    for scale in range(3):
        places = torch.rand(1, height, width, generator=generator(seed, f"flakes {scale}"), dtype=torch.float64)
        sigma = max(0.4, size * min(height, width) * 2.0 ** (scale - 2))
        kernel = gaussian_kernel(2 * math.ceil(3 * sigma) + 1, sigma)
        flakes = filter_image((places < density / 6**scale).double(), kernel) / kernel.max()
        mask = torch.maximum(mask, flakes.clamp(0, 1))
    mask = (opacity * mask).to(x_CHW.device)
    return x_CHW + mask * (1 - x_CHW)


def raindrop(x_CHW: Tensor, *, count: int, radius: float, blur: float, seed: int) -> Tensor:
    """Drops on the lens: each shows the scene upside down, smaller, blurred and slightly brighter.

    Args:
        x_CHW: the clean image.
        count: number of drops.
        radius: of the largest drop, as a fraction of the short side; the smallest have a third of it.
        blur: sigma of the blur inside the drops, as a fraction of the short side.
        seed: of positions, sizes and shapes.
    """
    _, height, width = x_CHW.shape
    short = min(height, width)
    draws = torch.rand(count, 5, generator=generator(seed, "drops"), dtype=torch.float64)
    y = torch.arange(height, dtype=torch.float64).view(height, 1)
    x = torch.arange(width, dtype=torch.float64).view(1, width)
    mask = torch.zeros(height, width, dtype=torch.float64)
    from_y, from_x = y.expand(height, width).clone(), x.expand(height, width).clone()
    for across, down, size, flat, tilt in draws.tolist():
        centre_y, centre_x = down * height, across * width
        r = max(1.0, radius * short * (1 + 2 * size) / 3)
        angle = (tilt - 0.5) * math.pi / 3
        u = (x - centre_x) * math.cos(angle) + (y - centre_y) * math.sin(angle)
        v = (y - centre_y) * math.cos(angle) - (x - centre_x) * math.sin(angle)
        reach = ((u / r) ** 2 + (v / (r * (1 + 0.5 * flat))) ** 2).sqrt()
        drop = ((1.15 - reach) / 0.3).clamp(0, 1)
        inside = reach < 1.15
        # A drop is a lens: it shows the point k times as far on the opposite side; k grows towards the rim.
        lens = 2.0 + 2.0 * reach
        from_y = torch.where(inside, centre_y - lens * (y - centre_y), from_y)
        from_x = torch.where(inside, centre_x - lens * (x - centre_x), from_x)
        mask = torch.maximum(mask, drop)
    grid = torch.stack([2 * from_x / max(width - 1, 1) - 1, 2 * from_y / max(height - 1, 1) - 1], dim=-1)
    seen = F.grid_sample(
        x_CHW[None], grid[None].to(x_CHW), mode="bilinear", padding_mode="reflection", align_corners=True
    )[0]
    sigma = max(0.4, blur * short)
    seen = filter_image(seen, gaussian_kernel(2 * math.ceil(3 * sigma) + 1, sigma))
    return x_CHW + mask.to(x_CHW.device) * ((1.1 * seen).clamp(0, 1) - x_CHW)


def low_light(x_CHW: Tensor, *, alpha: float, beta: float, gamma: float, sigma: float, seed: int) -> Tensor:
    """Low light, beta (alpha J)^gamma, and the noise of a short exposure.

    Args:
        x_CHW: the clean image.
        alpha, beta: gains before and after the gamma curve, in (0, 1].
        gamma: 2 to 5; higher is darker.
        sigma: of the noise, in units of the [0, 1] range.
        seed: of the noise.
    """
    dark = beta * (alpha * x_CHW.clamp(0, 1)) ** gamma  # as in MBLLEN
    field = torch.randn(x_CHW.shape, generator=generator(seed, "exposure"), dtype=torch.float64)
    return (dark + sigma * field.to(x_CHW.device)).clamp(0, 1)


def motion_blur(x_CHW: Tensor, *, length: float, angle: float, bend: float) -> Tensor:
    """Average along a curved path, in linear light.

    Args:
        x_CHW: the clean image.
        length: of the path, as a fraction of the short side.
        angle: of the path at its midpoint, in radians from the horizontal.
        bend: change of direction from start to end, in radians.
    """
    taps = max(3, round(length * min(x_CHW.shape[1:])))
    linear = x_CHW.clamp(0, 1) ** DISPLAY_GAMMA
    return filter_image(linear, line_kernel(taps, angle=angle, bend=bend)).clamp(0, 1) ** (1 / DISPLAY_GAMMA)


def line_kernel(length: int, *, angle: float, bend: float = 0.0) -> Tensor:
    """A motion kernel: a path of `length` pixels centred in an odd square, sum 1, turning by `bend` radians."""
    size = length + (length + 1) % 2
    steps = 8 * length
    heading = angle + bend * (torch.arange(steps, dtype=torch.float64) / steps - 0.5)
    y, x = (torch.cumsum(part, 0) * (length - 1) / steps for part in (heading.sin(), heading.cos()))
    y, x = (place - (place.amin() + place.amax()) / 2 + size // 2 for place in (y, x))
    kernel = torch.zeros(size, size, dtype=torch.float64)
    for dy in (0, 1):
        for dx in (0, 1):
            weight = (1 - (y - y.floor() - dy).abs()) * (1 - (x - x.floor() - dx).abs())
            place = ((y.floor().long() + dy).clamp(0, size - 1), (x.floor().long() + dx).clamp(0, size - 1))
            kernel.index_put_(place, weight, accumulate=True)
    return kernel / kernel.sum()


WEATHER = {
    "haze": haze,
    "rain": rain,
    "raindrop": raindrop,
    "snow": snow,
    "low_light": low_light,
    "motion_blur": motion_blur,
}
