"""A codec that starts as a transform coder: the encoder's mean is a scaled DCT of 4x4 patches.

From random weights the codec of a shipped prior needs a thousand steps until its latent says more than colours. On
photographs 12 coefficients of the DCT of a patch (8 of luma, 2 of chroma at rest, 2 more of luma) alone give 35 dB, so
the encoder starts there, in closed form, and only the decoder starts from nothing. Everything stays trainable.

How a network with residual blocks, group norms and SiLUs is linear at the start: the last convolution of each residual
block is zero, so that its skip is all there is; strided convolutions rearrange pixels into channels; before the last
group norm each value x stands beside -x and large constants, so that the norm divides by a constant; and SiLU is
evaluated around `BIAS` on x and -x, whose difference is linear but for a cubic rest. Selected by `start: dct` of
`CodecPretraining`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from torch import Tensor, nn

PATCH = 4  # pixels; the compression of three levels
PIXELS = 3 * PATCH * PATCH  # values of a patch
LUMA_CHROMA = ((1, 1, 1), (1, -1, 0), (1, 1, -2))  # rows, not yet of length 1
CONSTANT = 30.0  # beside pixels in [-1, 1]: the group norm's divisor moves by less than 0.2 percent
BIAS = 6.0  # where SiLU is nearly the identity


def dct_basis(channels: int) -> Tensor:
    """The first `channels` basis functions, (channels, 48), in the order of `torch.pixel_unshuffle`.

    Sorted by frequency u + v; those of chroma count three times. Each is divided by its standard deviation on
    photographs by a power law, so that the coefficients are near to unit variance.

    Raises:
        ValueError: for more channels than a patch has values.
    """
    if not 1 <= channels <= PIXELS:
        raise ValueError(f"channels={channels}: a patch of {PATCH}x{PATCH} pixels has 1 to {PIXELS} coefficients")
    n = torch.arange(PATCH) + 0.5
    waves = torch.stack([torch.cos(math.pi * n * u / PATCH) for u in range(PATCH)])
    waves = waves / waves.norm(dim=1, keepdim=True)
    colours = torch.tensor(LUMA_CHROMA, dtype=torch.float32)
    colours = colours / colours.norm(dim=1, keepdim=True)
    order = sorted(
        ((u + v) * (3 if c else 1), c, abs(u - v), u, v) for c in range(3) for u in range(PATCH) for v in range(PATCH)
    )
    rows = [
        torch.einsum("c,y,x->cyx", colours[c], waves[u], waves[v]).flatten() / _deviation(c, u, v)
        for _, c, _, u, v in order[:channels]
    ]
    return torch.stack(rows)


def start_as_dct(vae: AutoencoderKL, *, logvar: float) -> None:
    """Rewrite the weights of a fresh AutoencoderKL of three levels, in place.

    Args:
        vae: without attention in its middle.
        logvar: of the posterior.

    Raises:
        ValueError: for a codec whose levels are too narrow, or of another number.
    """
    encoder, groups = vae.encoder, vae.encoder.conv_norm_out.num_groups
    widths = tuple(vae.config["block_out_channels"])
    if len(widths) != 3 or widths[0] < 12 or widths[1] < PIXELS or widths[2] < 2 * (PIXELS + groups) or PIXELS % groups:
        raise ValueError(
            f"start=dct needs three levels of at least 12, {PIXELS} and {2 * (PIXELS + groups)} channels, and groups "
            f"that divide {PIXELS}, not widths={list(widths)} with groups={groups}"
        )
    with torch.no_grad():
        for block in (*encoder.modules(), *vae.decoder.modules()):
            if type(block).__name__ == "ResnetBlock2D":
                _zero(block.conv2)
        _zero(encoder.conv_in)
        for c in range(3):
            encoder.conv_in.weight[c, c, 1, 1] = 1
        first, second, third = encoder.down_blocks
        _unshuffle(first.downsamplers[0].conv, 3)
        _carry(second.resnets[0].conv_shortcut, 12)
        _unshuffle(second.downsamplers[0].conv, 12)
        values, opposites = _mirror(third.resnets[0].conv_shortcut, groups)
        _read(encoder, values, opposites, dct_basis(vae.config["latent_channels"]))
        _zero(vae.quant_conv)
        vae.quant_conv.weight[:, :, 0, 0] = torch.eye(vae.quant_conv.weight.shape[0])
        vae.quant_conv.bias[vae.config["latent_channels"] :] = logvar


def _deviation(colour: int, u: int, v: int) -> float:
    """Standard deviation of a coefficient on photographs in [-1, 1], roughly: 1/f, chroma a quarter."""
    if u == v == 0:
        return 1.6 if colour == 0 else 0.5
    return (0.25 if colour == 0 else 0.06) / (u * u + v * v) ** 0.6


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters(recurse=False):
        parameter.zero_()


def _unshuffle(conv: nn.Conv2d, channels: int) -> None:
    """A 3x3 convolution of stride 2, padded right and below: 2x2 pixels of each channel become four channels."""
    _zero(conv)
    for c in range(channels):
        for y in range(2):
            for x in range(2):
                conv.weight[c * 4 + y * 2 + x, c, y, x] = 1


def _carry(conv: nn.Conv2d, channels: int) -> None:
    _zero(conv)
    for c in range(channels):
        conv.weight[c, c, 0, 0] = 1


def _mirror(conv: nn.Conv2d, groups: int) -> tuple[list[int], list[int]]:
    """A 1x1 convolution to each group's share of values, their opposites, and constants of alternating sign.

    Returns:
        The channels of the values and of their opposites; value k is the k-th after two `_unshuffle`s.
    """
    _zero(conv)
    size, share = conv.out_channels // groups, PIXELS // groups
    values, opposites = [], []
    for k in range(PIXELS):
        group, place = divmod(k, share)
        values.append(group * size + place)
        opposites.append(values[-1] + share)
        conv.weight[values[-1], k, 0, 0], conv.weight[opposites[-1], k, 0, 0] = 1, -1
    for group in range(groups):
        for place in range(2 * share, size):
            conv.bias[group * size + place] = CONSTANT if place % 2 else -CONSTANT
    return values, opposites


def _read(encoder: nn.Module, values: list[int], opposites: list[int], basis: Tensor) -> None:
    """The last group norm, SiLU and convolution: the basis functions' products with the values."""
    norm, conv = encoder.conv_norm_out, encoder.conv_out
    size = norm.num_channels // norm.num_groups
    constants = size - 2 * PIXELS // norm.num_groups
    norm.weight.fill_(0)
    norm.bias.fill_(0)
    norm.weight[values + opposites] = CONSTANT * math.sqrt(constants / size)  # undoes the norm's division
    norm.bias[values + opposites] = BIAS
    step = torch.tensor(0.3)  # the size of a pixel's value
    slope = float((F.silu(BIAS + step) - F.silu(BIAS - step)) / (2 * step))
    _zero(conv)
    # Two unshuffles by 2 order a patch's pixels as (c, y%2, x%2, y//2, x//2), the basis as (c, y, x).
    places = torch.arange(PIXELS).reshape(3, 2, 2, 2, 2).permute(0, 3, 1, 4, 2).flatten()
    ordered = torch.empty_like(basis)
    ordered[:, places] = basis
    channels = basis.shape[0]
    conv.weight[:channels, values, 1, 1] = ordered / (2 * slope)
    conv.weight[:channels, opposites, 1, 1] = -ordered / (2 * slope)
