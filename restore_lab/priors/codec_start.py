"""Initialises a codec as a transform coder: the encoder's mean is a scaled DCT of 4x4 patches.

With random weights, the codec of a shipped prior needs a thousand steps until its latent holds more than colours. On
photographs 12 DCT coefficients of a patch (10 of luma and 2 constant ones of chroma) reach 35 dB, so the encoder is set
to these in closed form, and only the decoder starts at random. All parameters stay trainable.

A network with residual blocks, group norms and SiLUs is linear at the start by four means: the last convolution of each
residual block is zero, which leaves the skip; strided convolutions rearrange pixels into channels; before the last
group norm each value x has -x and large constants in its group, such that the norm divides by a constant; SiLU is
evaluated at `BIAS` + x and `BIAS` - x, whose difference is linear up to a cubic term.
Selected by `start: dct` of `CodecPretraining`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch.nn import functional as F

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from torch import Tensor, nn

PATCH = 4  # pixels; the compression of three levels
PIXELS = 3 * PATCH * PATCH  # values per patch
LUMA_CHROMA = ((1, 1, 1), (1, -1, 0), (1, 1, -2))  # rows, before normalisation to unit length
CONSTANT = 30.0  # with pixels in [-1, 1] the group norm's divisor varies by less than 0.2 percent
BIAS = 6.0  # where SiLU is nearly the identity


def dct_basis(channels: int) -> Tensor:
    """The first `channels` basis functions, (channels, 48), in the order of `torch.pixel_unshuffle`.

    They are sorted by frequency u + v, times three for chroma. Each is divided by the standard deviation of its
    coefficient on photographs, from a power law, such that the coefficients have about unit variance.

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


def initialise_as_dct(vae: AutoencoderKL, *, logvar: float) -> None:
    """Set the weights of a new AutoencoderKL of three levels, in place.

    Args:
        vae: has no attention in its middle block.
        logvar: of the posterior.

    Raises:
        ValueError: for a codec with levels that are too narrow, or not three.
    """
    encoder: Any = vae.encoder
    groups = encoder.conv_norm_out.num_groups
    widths = tuple(vae.config["block_out_channels"])
    if len(widths) != 3 or widths[0] < 12 or widths[1] < PIXELS or widths[2] < 2 * (PIXELS + groups) or PIXELS % groups:
        raise ValueError(
            f"start=dct needs three levels of at least 12, {PIXELS} and {2 * (PIXELS + groups)} channels, and groups "
            f"that divide {PIXELS}, not widths={list(widths)} with groups={groups}"
        )
    with torch.no_grad():
        for block in (*vae.encoder.modules(), *vae.decoder.modules()):
            if isinstance(block, ResnetBlock2D):
                _zero(block.conv2)
        _zero(encoder.conv_in)
        for c in range(3):
            encoder.conv_in.weight[c, c, 1, 1] = 1
        first, second, third = encoder.down_blocks
        _set_unshuffle(first.downsamplers[0].conv, 3)
        _set_identity(second.resnets[0].conv_shortcut, 12)
        _set_unshuffle(second.downsamplers[0].conv, 12)
        values, negatives = _set_mirror(third.resnets[0].conv_shortcut, groups)
        _divide_by_constant(encoder.conv_norm_out, values + negatives)
        _set_projection(encoder.conv_out, values, negatives, dct_basis(vae.config["latent_channels"]))
        quant: Any = vae.quant_conv
        _zero(quant)
        quant.weight[:, :, 0, 0] = torch.eye(quant.weight.shape[0])
        quant.bias[vae.config["latent_channels"] :] = logvar


def _deviation(colour: int, u: int, v: int) -> float:
    """The approximate standard deviation of a coefficient on photographs in [-1, 1]: 1/f, for chroma a quarter."""
    if u == v == 0:
        return 1.6 if colour == 0 else 0.5
    return (0.25 if colour == 0 else 0.06) / (u * u + v * v) ** 0.6


def _zero(layer: nn.Module) -> None:
    """Set a layer's weight and bias to zero."""
    for parameter in layer.parameters(recurse=False):
        parameter.zero_()


def _set_unshuffle(conv: nn.Conv2d, channels: int) -> None:
    """Make a 3x3 convolution of stride 2, padded right and below, map 2x2 pixels of each channel to four channels."""
    _zero(conv)
    for c in range(channels):
        for y in range(2):
            for x in range(2):
                conv.weight[c * 4 + y * 2 + x, c, y, x] = 1


def _set_identity(conv: nn.Conv2d, channels: int) -> None:
    """Make a 1x1 convolution copy the first channels."""
    _zero(conv)
    for c in range(channels):
        conv.weight[c, c, 0, 0] = 1


def _set_mirror(conv: nn.Conv2d, groups: int) -> tuple[list[int], list[int]]:
    """Make a 1x1 convolution fill each group with its share of the values, their negatives, and constants +-`CONSTANT`.

    Returns:
        The channels of the values and of their negatives; value k is the k-th after two `_set_unshuffle`s.
    """
    _zero(conv)
    assert conv.bias is not None
    size, share = conv.out_channels // groups, PIXELS // groups
    values, negatives = [], []
    for k in range(PIXELS):
        group, place = divmod(k, share)
        values.append(group * size + place)
        negatives.append(values[-1] + share)
        conv.weight[values[-1], k, 0, 0], conv.weight[negatives[-1], k, 0, 0] = 1, -1
    for group in range(groups):
        for place in range(2 * share, size):
            conv.bias[group * size + place] = CONSTANT if place % 2 else -CONSTANT
    return values, negatives


def _divide_by_constant(norm: nn.GroupNorm, channels: list[int]) -> None:
    """Make the last group norm map x in some channels to x + `BIAS`, and the other channels to 0."""
    size = norm.num_channels // norm.num_groups
    constants = size - 2 * PIXELS // norm.num_groups
    norm.weight.fill_(0)
    norm.bias.fill_(0)
    norm.weight[channels] = CONSTANT * math.sqrt(constants / size)  # cancels the norm's division
    norm.bias[channels] = BIAS


def _set_projection(conv: nn.Conv2d, values: list[int], negatives: list[int], basis: Tensor) -> None:
    """Make the last convolution, after SiLU, the projection of the values onto the basis functions."""
    step = torch.tensor(0.3)  # a typical pixel value
    slope = float((F.silu(BIAS + step) - F.silu(BIAS - step)) / (2 * step))
    _zero(conv)
    # Two unshuffles by 2 give pixels in the order (c, y%2, x%2, y//2, x//2); the basis has (c, y, x).
    places = torch.arange(PIXELS).reshape(3, 2, 2, 2, 2).permute(0, 3, 1, 4, 2).flatten()
    ordered = torch.empty_like(basis)
    ordered[:, places] = basis
    channels = basis.shape[0]
    conv.weight[:channels, values, 1, 1] = ordered / (2 * slope)
    conv.weight[:channels, negatives, 1, 1] = -ordered / (2 * slope)
