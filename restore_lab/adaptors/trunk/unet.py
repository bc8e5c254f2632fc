"""The trunk of a UNet: a trainable copy of the encoder half and middle block, run by the prior's forward loop.

SPIRE section 3.4: "an encoder initialized from pretrained UNet is finetuned", with z_t and the degraded image's
features E'(y) concatenated as input (`feed=concat`). SUPIR section 3.1: the copy has half of its transformer layers
(`depth=half`); as in ControlNet, the LQ's latent, after a convolution, is added to the first convolution's output
(`feed=add`). The new weights are zero-initialised in both cases, so an untrained trunk reads only z_t. InstantIR
section 3.2: the LQ's latent is stacked above a reference in one map, each after its own first convolution; z_t is not
read (`feed=spatial`). Shapes: z (B, C, h, w), hint features (B, F, h, w); output: one map per skip and the middle
block's, by tap name; with `spatial` the two halves are concatenated in the channels, the reference's first.
trunk/mmdit.py is the MM-DiT's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from restore_lab.adaptors.fusion.base import Controls, encoder_controls
from restore_lab.adaptors.fusion.zero_conv import zero_conv
from restore_lab.backbones.unet_loop import EncoderModules, embed_time_and_size, run_encoder_half
from restore_lab.types import Cond, Tap

if TYPE_CHECKING:
    from restore_lab.backbones.unet import UNetBackbone

Middle = Literal["frozen", "trainable"]
Feed = Literal["concat", "add", "spatial"]
Depth = Literal["whole", "half"] | int | Sequence[int]


def widen(conv: nn.Conv2d, extra: int) -> nn.Conv2d:
    """A copy of the convolution with `extra` more input channels, zero-initialised."""
    settings: dict[str, Any] = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding")}
    weight_OIHW = F.pad(conv.weight.detach(), (0, 0, 0, 0, 0, extra))
    wide = nn.Conv2d(
        conv.in_channels + extra, conv.out_channels, **settings, device=weight_OIHW.device, dtype=weight_OIHW.dtype
    )
    wide.load_state_dict({**conv.state_dict(), "weight": weight_OIHW})
    return wide


def collect_skips(tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: tuple) -> tuple[Tensor, tuple]:
    """An edit that changes nothing and collects the skips and the middle block's output in the carry."""
    return h_BCHW, carry + (h_BCHW,) if tap.kind in ("encoder", "middle") else carry


def trim(blocks: EncoderModules, depth: Depth) -> None:
    """Truncate every attention of an encoder half to its first transformer layers, in place.

    Args:
        blocks: a trunk with `down_blocks` and `mid_block`.
        depth: "whole"; "half" of the layers of each attention, at least one; or the number of layers for each level
            with attention, the middle block last.

    Raises:
        ValueError: for a depth that does not fit the blocks.
    """
    levels = [block for block in (*blocks.down_blocks, blocks.mid_block) if getattr(block, "attentions", None)]
    whole = [len(block.attentions[0].transformer_blocks) for block in levels]
    if depth == "whole":
        return
    if isinstance(depth, int):
        raise ValueError(f"adaptor.trunk.depth={depth} counts an MM-DiT's blocks; for a UNet list layers like {whole}")
    # SUPIR, section 3.1: a trimmed copy, with half of the layers
    kept = [max(1, layers // 2) for layers in whole] if depth == "half" else list(depth)
    if len(kept) != len(whole) or any(not 1 <= k <= layers for k, layers in zip(kept, whole, strict=True)):
        raise ValueError(f"adaptor.trunk.depth={kept} does not fit this backbone, whose attentions have {whole} layers")
    for block, k in zip(levels, kept, strict=True):
        for attention in block.attentions:
            attention.transformer_blocks = attention.transformer_blocks[:k]


def remove_cross_attention(blocks: EncoderModules) -> None:
    """Remove the cross attentions of an encoder half, in place."""
    for block in (*blocks.down_blocks, blocks.mid_block):
        for attention in getattr(block, "attentions", None) or ():
            for layer in attention.transformer_blocks:
                layer.attn2, layer.norm2 = None, None


class Trunk(nn.Module):
    """The copied encoder; arguments as for `restore_lab.adaptors.trunk.build.trunk`."""

    def __init__(
        self,
        backbone: UNetBackbone,
        *,
        hint_channels: int,
        middle: Middle,
        depth: Depth = "whole",
        feed: Feed = "concat",
        text: bool = True,
    ) -> None:
        super().__init__()
        unet = backbone.unet
        self.taps, self.feed = backbone.encoder_taps, feed
        own = encoder_controls(backbone).channels
        halves = 2 if feed == "spatial" else 1
        self.controls = Controls(channels={name: halves * width for name, width in own.items()}, halves=halves)
        self.time_proj = copy.deepcopy(unet.time_proj)
        self.time_embedding = copy.deepcopy(unet.time_embedding)
        self.down_blocks = copy.deepcopy(unet.down_blocks)
        self.mid_block = copy.deepcopy(unet.mid_block)
        if getattr(unet, "add_embedding", None) is not None:
            self.add_time_proj = copy.deepcopy(unet.add_time_proj)
            self.add_embedding = copy.deepcopy(unet.add_embedding)
        trim(self, depth)
        if not text:
            remove_cross_attention(self)
        self.requires_grad_(True)
        self.mid_block.requires_grad_(middle == "trainable")
        self.conv_in = widen(unet.conv_in, hint_channels if feed == "concat" else 0)
        if feed == "add":
            self.conv_hint = zero_conv(hint_channels, unet.conv_in.out_channels, size=3, like=unet.conv_in.weight)
        if feed == "spatial":
            self.conv_reference = copy.deepcopy(unet.conv_in).requires_grad_(True)

    def forward(
        self, z_BCHW: Tensor, t_B: Tensor, hint_BCHW: Tensor, cond: Cond, reference_BCHW: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The features for the fusion, by the name of the backbone's corresponding tap.

        Args:
            z_BCHW: noisy latents, not read with `spatial`.
            t_B: timesteps, (B,).
            hint_BCHW: the hint; with `spatial` the LQ latent.
            cond: text tokens, and pooled text and size conditioning (SDXL).
            reference_BCHW: the reference latent, only read with `spatial`.
        """
        dtype = self.conv_in.weight.dtype
        temb_BD = embed_time_and_size(self, t_B, cond, dtype=dtype)
        if self.feed == "add":
            h = self.conv_in(z_BCHW.to(dtype)) + self.conv_hint(hint_BCHW.to(dtype))  # ControlNet, Eq. 2
        elif self.feed == "spatial":
            h = stack(self.conv_in(hint_BCHW.to(dtype)), self.conv_reference, reference_BCHW)  # InstantIR, section 3.2
        else:
            h = self.conv_in(torch.cat([z_BCHW, hint_BCHW], dim=1).to(dtype))  # SPIRE, section 3.4: the encoder's input
        outputs: Any = ()
        _, _, outputs = run_encoder_half(
            self, h, temb_BD, cond.tokens_BLD.to(dtype), taps=self.taps, at=collect_skips, carry=()
        )
        if self.feed == "spatial":
            outputs = tuple(concat_halves(h) for h in outputs)
        return dict(zip(self.controls.channels, outputs, strict=True))


def stack(lq_BCHW: Tensor, first: nn.Module, reference_BCHW: Tensor | None) -> Tensor:
    """The LQ features, stacked above the reference's features.

    Raises:
        ValueError: without a reference.
    """
    if reference_BCHW is None:
        raise ValueError("this trunk reads a reference beside the LQ, and there is none; use method=instantir")
    return torch.cat([lq_BCHW, first(reference_BCHW.to(lq_BCHW.dtype))], dim=-2)


def concat_halves(map_BCHW: Tensor) -> Tensor:
    """A map of LQ above reference as [reference, LQ] in the channels: (B, C, 2 h, w) -> (B, 2 C, h, w)."""
    lq, reference = map_BCHW.chunk(2, dim=-2)
    return torch.cat([reference, lq], dim=1)
