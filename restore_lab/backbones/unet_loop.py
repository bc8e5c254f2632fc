"""The forward loop over a diffusers UNet's modules, which calls an `Edit` at each tap.

`embed_time_and_size`, `run_encoder_half` and `run_decoder_half` are functions of the modules, so that a trunk (a
trainable copy of the encoder half) runs the same code up to the middle block. With `at=identity` the result equals
UNet2DConditionModel.forward bit for bit, also with gradient checkpointing; taps are outside checkpointed regions.
Shapes: z (B, C, H, W), temb (B, D), ctx (B, L, D).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from restore_lab.backbones.base import extra_stream
from restore_lab.system.xla import upsample_nearest_2x
from restore_lab.types import Cond, Edit, Tap, identity_edit


class EncoderModules(Protocol):
    """The diffusers blocks that `run_encoder_half` reads: a UNet2DConditionModel's, or a trunk's copies."""

    @property
    def down_blocks(self) -> Iterable[Any]: ...

    @property
    def mid_block(self) -> Any: ...


class TimeModules(Protocol):
    """The modules that `embed_time_and_size` reads; only SDXL's have `add_time_proj` and `add_embedding`."""

    @property
    def time_proj(self) -> Callable[[Tensor], Tensor]: ...

    @property
    def time_embedding(self) -> Callable[[Tensor], Tensor]: ...

    @property
    def add_time_proj(self) -> Callable[[Tensor], Tensor]: ...


def embed_time_and_size(modules: TimeModules, t_B: Tensor, cond: Cond, *, dtype: torch.dtype) -> Tensor:
    """The embedding (B, D) of the timestep and, for SDXL, of the pooled text and the size.

    Args:
        modules: the UNet or a trunk.
        t_B: integer timesteps.
        cond: one guidance branch; `pooled_BD` and `size_BD` are required if the modules have an `add_embedding`.
        dtype: the modules' dtype; the sinusoids are computed in float32.

    Raises:
        ValueError: for an SDXL-like UNet and a condition without pooled text or size.
    """
    temb_BD = modules.time_embedding(modules.time_proj(t_B).to(dtype))
    add_embedding = getattr(modules, "add_embedding", None)
    if add_embedding is None:
        return temb_BD
    if cond.pooled_BD is None or cond.size_BD is None:
        raise ValueError("this backbone needs pooled text and size conditioning; build the condition with embed()")
    size_BD = modules.add_time_proj(cond.size_BD.flatten()).reshape(len(cond.pooled_BD), -1)
    return temb_BD + add_embedding(torch.cat([cond.pooled_BD, size_BD], dim=-1).to(dtype))


def run_encoder_half(
    modules: EncoderModules,
    h_BCHW: Tensor,
    temb_BD: Tensor,
    ctx_BLD: Tensor,
    *,
    taps: Sequence[Tap],
    at: Edit = identity_edit,
    carry: Any = None,
    visual_BLD: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, ...], Any]:
    """The encoder half, from the output of conv_in to the output of the middle block.

    Args:
        modules: the UNet or a trunk.
        h_BCHW: conv_in's output; a trunk may have added its own input.
        temb_BD: from `embed_time_and_size`.
        ctx_BLD: tokens of the cross attention.
        taps: the encoder half's taps (`UNetBackbone.encoder_taps`).
        at: called at each tap in order; its output replaces the skip (kind "encoder") or the next layer's input.
        carry: the edit's state before the first tap.
        visual_BLD: tokens of a visual stream, if one is installed in the cross attentions.

    Returns:
        The middle block's output, the skips in forward order (conv_in's first), and the carry.
    """
    visit, ctx = iter(taps), (ctx_BLD, extra_stream(visual_BLD, temb_BD))
    skip, carry = at(next(visit), h_BCHW, temb_BD, carry)
    skips = [skip]
    for block in modules.down_blocks:
        for i, resnet in enumerate(block.resnets):
            h_BCHW = _layer(block, i, resnet, h_BCHW, temb_BD, *ctx)
            skip, carry = at(next(visit), h_BCHW, temb_BD, carry)
            skips.append(skip)
        for sampler in block.downsamplers or ():
            h_BCHW = sampler(h_BCHW)
            skip, carry = at(next(visit), h_BCHW, temb_BD, carry)
            skips.append(skip)
        h_BCHW, carry = at(next(visit), h_BCHW, temb_BD, carry)
    h_BCHW = _middle(modules.mid_block, h_BCHW, temb_BD, *ctx)
    h_BCHW, carry = at(next(visit), h_BCHW, temb_BD, carry)
    return h_BCHW, tuple(skips), carry


def run_decoder_half(
    up_blocks: Iterable[Any],
    h_BCHW: Tensor,
    skips: Sequence[Tensor],
    temb_BD: Tensor,
    ctx_BLD: Tensor,
    *,
    taps: Sequence[Tap],
    at: Edit = identity_edit,
    carry: Any = None,
    visual_BLD: Tensor | None = None,
) -> tuple[Tensor, Any]:
    """The decoder half, from the middle block's output to the input of conv_norm_out; the last skip is used first."""
    visit, left, ctx = iter(taps), list(skips), (ctx_BLD, extra_stream(visual_BLD, temb_BD))
    for block in up_blocks:
        for i, resnet in enumerate(block.resnets):
            joined, carry = at(next(visit), torch.cat([h_BCHW, left.pop()], dim=1), temb_BD, carry)
            h_BCHW = _layer(block, i, resnet, joined, temb_BD, *ctx)
        for sampler in block.upsamplers or ():
            h_BCHW, carry = at(next(visit), h_BCHW, temb_BD, carry)
            h_BCHW = _upsampled(sampler, h_BCHW, _upsample_size(h_BCHW, left))
        h_BCHW, carry = at(next(visit), h_BCHW, temb_BD, carry)
    return h_BCHW, carry


def _layer(
    block: Any, i: int, resnet: nn.Module, h_BCHW: Tensor, temb_BD: Tensor, ctx_BLD: Tensor, extra: Any
) -> Tensor:
    """Resnet i of a block and the attention after it, which checkpoints its own transformer blocks."""
    if torch.is_grad_enabled() and block.gradient_checkpointing:
        h_BCHW = block._gradient_checkpointing_func(resnet, h_BCHW, temb_BD)
    else:
        h_BCHW = resnet(h_BCHW, temb_BD)
    if not getattr(block, "has_cross_attention", False):
        return h_BCHW
    attention = block.attentions[i]
    return attention(h_BCHW, encoder_hidden_states=ctx_BLD, cross_attention_kwargs=extra, return_dict=False)[0]


def _middle(block: Any, h_BCHW: Tensor, temb_BD: Tensor, ctx_BLD: Tensor, extra: Any) -> Tensor:
    if getattr(block, "has_cross_attention", False):
        return block(h_BCHW, temb_BD, encoder_hidden_states=ctx_BLD, cross_attention_kwargs=extra)
    return block(h_BCHW, temb_BD)


def _upsampled(sampler: Any, h_BCHW: Tensor, size: tuple[int, int] | None) -> Tensor:
    """The upsampler's output; on XLA with `upsample_nearest_2x`."""
    on_xla = h_BCHW.device.type == "xla" and size is None
    return sampler.conv(upsample_nearest_2x(h_BCHW)) if on_xla else sampler(h_BCHW, size)


def _upsample_size(h_BCHW: Tensor, left: Sequence[Tensor]) -> tuple[int, int] | None:
    """The next skip's size if it is not twice the map's size (odd sizes), else None."""
    height, width = left[-1].shape[-2:]
    if (height, width) == (2 * h_BCHW.shape[-2], 2 * h_BCHW.shape[-1]):
        return None
    return height, width
