"""The trunk: a trainable copy of the encoder half, run by the backbone's own loop and stopped after the middle.

SPIRE section 3.4: "an encoder initialized from pretrained UNet is finetuned", fed with z_t and the degraded image's
features E'(y) side by side (channel concatenation), cross-attending to the restoration prompt. The first convolution
is widened by zero-initialised channels, so that at the start the trunk is the prior's encoder.
Shapes: z (B, C, h, w), hint features (B, F, h, w); out: one map a skip, and the middle's, by tap name.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from restore_lab.backbones.unet_loop import encode, time_embedding
from restore_lab.types import Cond, Tap

if TYPE_CHECKING:
    from restore_lab.backbones.unet import UNetBackbone

Middle = Literal["frozen", "trainable"]


def widened(conv: nn.Conv2d, extra: int) -> nn.Conv2d:
    """The convolution with `extra` more input channels, whose weights are zero."""
    wide = nn.Conv2d(
        conv.in_channels + extra,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, : conv.in_channels] = conv.weight
        wide.bias.copy_(conv.bias)
    return wide


def collect(tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: tuple) -> tuple[Tensor, tuple]:
    """The edit that changes nothing and keeps what a fusion will want: the skips and the middle."""
    return h_BCHW, carry + (h_BCHW,) if tap.kind in ("encoder", "middle") else carry


class Trunk(nn.Module):
    """The copied encoder.

    Args:
        backbone: whose UNet is copied.
        hint_channels: channels of E'(y), concatenated behind z_t.
        middle: whether the copied middle block learns. SPIRE counts 275 M trainable parameters, which is the encoder
            without the middle (docs/deviations.md), so its copy stays as it was.
    """

    def __init__(self, backbone: UNetBackbone, *, hint_channels: int, middle: Middle) -> None:
        super().__init__()
        unet = backbone.unet
        self.taps = backbone.encoder_taps
        self.names = tuple(tap.name for tap in self.taps if tap.kind in ("encoder", "middle"))
        self.time_proj = copy.deepcopy(unet.time_proj)
        self.time_embedding = copy.deepcopy(unet.time_embedding)
        self.down_blocks = copy.deepcopy(unet.down_blocks)
        self.mid_block = copy.deepcopy(unet.mid_block)
        if getattr(unet, "add_embedding", None) is not None:
            self.add_time_proj = copy.deepcopy(unet.add_time_proj)
            self.add_embedding = copy.deepcopy(unet.add_embedding)
        self.requires_grad_(True)
        if middle not in ("frozen", "trainable"):
            raise ValueError(f"adaptor.trunk.middle={middle!r} is not known; one of frozen, trainable")
        self.mid_block.requires_grad_(middle == "trainable")
        self.conv_in = widened(unet.conv_in, hint_channels)

    def forward(self, z_BCHW: Tensor, t_B: Tensor, hint_BCHW: Tensor, cond: Cond) -> dict[str, Tensor]:
        """The features for the fusion, by the name of the tap where the backbone has their like."""
        dtype = self.conv_in.weight.dtype
        temb_BD = time_embedding(self, t_B, cond, dtype=dtype)
        h = self.conv_in(torch.cat([z_BCHW, hint_BCHW], dim=1).to(dtype))
        found: Any = ()
        _, _, found = encode(self, h, temb_BD, cond.tokens_BLD.to(dtype), taps=self.taps, at=collect, carry=())
        return dict(zip(self.names, found, strict=True))
