"""Zero convolutions: ControlNet's fusion f_skip <- f_skip + Z(f_con) (Zhang et al. 2023), and what fusions share.

`adaptor/fusion=zero_conv` makes SPIRE's baseline "ControlNet-SR" (Tables 1 and 5) of the same trunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from restore_lab.backbones.unet import UNetBackbone
    from restore_lab.types import Tap


def zero_conv(inputs: int, outputs: int, *, size: int = 1) -> nn.Conv2d:
    """A convolution of size x size (odd) whose weights and bias are zero."""
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


def joins_with_controls(backbone: UNetBackbone) -> list[tuple[Tap, Tap]]:
    """Where a control enters the backbone, and the encoder tap whose copy in the trunk feeds it.

    The middle is fed by the trunk's middle; the joins, in order, by the skips from the last to the first.

    Raises:
        ValueError: if the backbone has no joins.
    """
    skips = [tap for tap in backbone.taps if tap.kind == "encoder"]
    joins = [tap for tap in backbone.taps if tap.kind == "join"]
    middle = [tap for tap in backbone.taps if tap.kind == "middle"]
    if not joins:
        raise ValueError("this fusion sits at joins, and this backbone has none; use a UNet backbone")
    return [(tap, tap) for tap in middle] + list(zip(joins, reversed(skips), strict=True))


class ZeroConv(nn.Module):
    """Controls added to the skips and the middle; an `Edit` whose carry is the trunk's features by tap name."""

    def __init__(self, backbone: UNetBackbone) -> None:
        super().__init__()
        self.sources: dict[str, str] = {}
        self.convs = nn.ModuleDict()
        for tap, source in joins_with_controls(backbone):
            self.sources[tap.name] = source.name
            self.convs[tap.name.replace(".", "_")] = zero_conv(source.channels, tap.skip or tap.channels)

    def forward(self, tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: dict[str, Tensor]) -> tuple[Tensor, dict]:
        """The edit: shown every tap, it acts at joins and at the middle."""
        if tap.name not in self.sources:
            return h_BCHW, carry
        residual = self.convs[tap.name.replace(".", "_")](carry[self.sources[tap.name]]).to(h_BCHW.dtype)
        width = tap.skip or tap.channels
        up, skip = h_BCHW.split([tap.channels - width, width], dim=1)
        return torch.cat([up, skip + residual], dim=1), carry
