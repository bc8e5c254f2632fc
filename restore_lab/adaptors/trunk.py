"""The trunk: a trainable copy of the encoder half, run by the backbone's own loop and stopped after the middle.

SPIRE section 3.4: "an encoder initialized from pretrained UNet is finetuned", fed with z_t and the degraded image's
features E'(y) side by side (`feed=concat`). SUPIR section 3.3: the copy keeps half of its transformer layers
(`depth=half`), and the LQ's latent goes through a convolution of its own and is added behind the first (`feed=add`).
Either way the new weights are zero, so that at the start the trunk sees z_t alone.
Shapes: z (B, C, h, w), hint features (B, F, h, w); out: one map a skip, and the middle's, by tap name.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from restore_lab.adaptors.zero import zero_conv
from restore_lab.backbones.unet_loop import encode, time_embedding
from restore_lab.types import Cond, Tap

if TYPE_CHECKING:
    from restore_lab.backbones.unet import UNetBackbone

Middle = Literal["frozen", "trainable"]
Feed = Literal["concat", "add"]


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


def trim(blocks: nn.Module, depth: str | Sequence[int]) -> None:
    """Keep the first transformer layers of every attention in an encoder half, in place.

    Args:
        blocks: a trunk with its copied `down_blocks` and `mid_block`.
        depth: "whole"; "half" of the layers of each attention, one at least; or how many for each level that has
            attention, the middle last.

    Raises:
        ValueError: for a depth that does not fit the blocks.
    """
    levels = [block for block in (*blocks.down_blocks, blocks.mid_block) if getattr(block, "attentions", None)]
    whole = [len(block.attentions[0].transformer_blocks) for block in levels]
    if depth == "whole":
        return
    kept = [max(1, layers // 2) for layers in whole] if depth == "half" else list(depth)
    if isinstance(depth, str) and depth != "half":
        raise ValueError(f"adaptor.trunk.depth={depth!r} is not known; one of whole, half, or a list of layers")
    if len(kept) != len(whole) or any(not 1 <= k <= layers for k, layers in zip(kept, whole, strict=True)):
        raise ValueError(f"adaptor.trunk.depth={kept} does not fit this backbone, whose attentions have {whole} layers")
    for block, k in zip(levels, kept, strict=True):
        for attention in block.attentions:
            attention.transformer_blocks = attention.transformer_blocks[:k]


class Trunk(nn.Module):
    """The copied encoder.

    Args:
        backbone: whose UNet is copied.
        hint_channels: channels of the hint.
        middle: whether the copied middle block learns. SPIRE counts 275 M trainable parameters, which is the encoder
            without the middle (docs/deviations.md), so its copy stays as it was.
        depth: how many transformer layers each attention keeps; see `trim`.
        feed: "concat" widens the first convolution by the hint, "add" adds a 3x3 convolution of the hint behind it.
    """

    def __init__(
        self,
        backbone: UNetBackbone,
        *,
        hint_channels: int,
        middle: Middle,
        depth: str | Sequence[int] = "whole",
        feed: Feed = "concat",
    ) -> None:
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
        trim(self, depth)
        self.requires_grad_(True)
        if middle not in ("frozen", "trainable"):
            raise ValueError(f"adaptor.trunk.middle={middle!r} is not known; one of frozen, trainable")
        self.mid_block.requires_grad_(middle == "trainable")
        if feed not in ("concat", "add"):
            raise ValueError(f"adaptor.trunk.feed={feed!r} is not known; one of concat, add")
        self.feed = feed
        self.conv_in = widened(unet.conv_in, hint_channels if feed == "concat" else 0)
        if feed == "add":
            self.conv_hint = zero_conv(hint_channels, unet.conv_in.out_channels, size=3)

    def forward(self, z_BCHW: Tensor, t_B: Tensor, hint_BCHW: Tensor, cond: Cond) -> dict[str, Tensor]:
        """The features for the fusion, by the name of the tap where the backbone has their like."""
        dtype = self.conv_in.weight.dtype
        temb_BD = time_embedding(self, t_B, cond, dtype=dtype)
        if self.feed == "add":
            h = self.conv_in(z_BCHW.to(dtype)) + self.conv_hint(hint_BCHW.to(dtype))
        else:
            h = self.conv_in(torch.cat([z_BCHW, hint_BCHW], dim=1).to(dtype))
        found: Any = ()
        _, _, found = encode(self, h, temb_BD, cond.tokens_BLD.to(dtype), taps=self.taps, at=collect, carry=())
        return dict(zip(self.names, found, strict=True))
