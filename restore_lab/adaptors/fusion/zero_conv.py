"""Zero convolutions: ControlNet's fusion f <- f + Z(f_con) (Zhang et al. 2023). `adaptor/fusion=zero_conv`.

With SPIRE's trunk this is the baseline "ControlNet-SR" (Tables 1 and 5). In a UNet f is the skip or the middle block's
output, in an MM-DiT a block's output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from restore_lab.adaptors.fusion.base import Controls, Fusion, FusionPoint

if TYPE_CHECKING:
    from restore_lab.backbones.base import Backbone


class Pointwise(nn.Conv2d):
    """A 1x1 convolution; for channels-last maps, such as an MM-DiT's tokens, computed as a faster matrix product."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (as in Conv2d)
        if input.is_contiguous() or not input.is_contiguous(memory_format=torch.channels_last):
            return super().forward(input)
        out_BHWC = functional.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
        return out_BHWC.permute(0, 3, 1, 2)


def zero_conv(inputs: int, outputs: int, *, size: int = 1, like: Tensor | None = None) -> nn.Conv2d:
    """A zero-initialised convolution of an odd kernel size, with the dtype and device of `like`."""
    kind = Pointwise if size == 1 else nn.Conv2d
    dtype, device = (None, None) if like is None else (like.dtype, like.device)
    conv = kind(inputs, outputs, size, padding=size // 2, dtype=dtype, device=device)
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv


class ZeroConv(Fusion):
    """Additive controls."""

    def __init__(self, backbone: Backbone, *, controls: Controls | None = None) -> None:
        super().__init__(backbone, controls=controls)
        self.convs = nn.ModuleDict(
            {point.key: zero_conv(point.channels, point.width) for point in self.points.values()}
        )

    def fuse(self, h_BCHW: Tensor, control_BCHW: Tensor, *, point: FusionPoint) -> Tensor:
        return add_residual(h_BCHW, self.convs[point.key](control_BCHW).to(h_BCHW.dtype))


def add_residual(h_BCHW: Tensor, residual_BCHW: Tensor) -> Tensor:
    """The map with the residual added to its last channels."""
    width = residual_BCHW.shape[1]
    if width == h_BCHW.shape[1]:
        return h_BCHW + residual_BCHW
    up, skip = h_BCHW.split([h_BCHW.shape[1] - width, width], dim=1)
    return torch.cat([up, skip + residual_BCHW], dim=1)
