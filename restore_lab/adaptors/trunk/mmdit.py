"""The trunk of an MM-DiT: a trainable copy of its first blocks, run by the prior's forward loop.

As in diffusers' SD3ControlNetModel: patch embedding, time and text embeddings, k joint blocks and, for `feed=add`, a
zero-initialised patch embedding of the hint. `feed=spatial` stacks the LQ latent above the reference. Without text the
copies are image-only blocks with the joint blocks' image weights. Shapes: z (B, C, h, w), hint features (B, F, h, w);
output: one map (B, D, h / patch, w / patch) per block, by tap name.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.transformers.transformer_sd3 import SD3SingleTransformerBlock
from torch import Tensor, nn

from restore_lab.adaptors.fusion.base import Controls
from restore_lab.adaptors.trunk.unet import Depth, concat_halves, stack, widen
from restore_lab.backbones.mmdit import add_positions, embed_time_and_text, run_blocks
from restore_lab.types import Cond, Tap

if TYPE_CHECKING:
    from restore_lab.backbones.base import Backbone


def collect_blocks(tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: tuple) -> tuple[Tensor, tuple]:
    """An edit that changes nothing and collects every block's output in the carry."""
    return h_BCHW, carry if tap.name == "patch" else (*carry, h_BCHW)


def block_count(depth: Depth, *, whole: int) -> int:
    """The number of copied blocks; the last block of an MM-DiT has no text output and is never copied.

    Raises:
        ValueError: for an invalid depth.
    """
    if depth in ("whole", "half"):
        return whole - 1 if depth == "whole" else whole // 2
    if isinstance(depth, int) and 1 <= depth < whole:
        return depth
    raise ValueError(f"adaptor.trunk.depth={depth!r}: give whole, half, or a number of blocks from 1 to {whole - 1}")


class MMDiTTrunk(nn.Module):
    """The copied blocks; arguments as for `restore_lab.adaptors.trunk.build.trunk`."""

    def __init__(self, backbone: Backbone, *, hint_channels: int, depth: Depth, feed: str, text: bool) -> None:
        super().__init__()
        model = backbone.denoiser
        count = block_count(depth, whole=len(model.transformer_blocks))
        self.taps, self.feed, self.patch = backbone.taps[: count + 1], feed, model.config.patch_size
        halves = 2 if feed == "spatial" else 1
        widths = {tap.name: halves * tap.channels for tap in self.taps[1:]}
        self.controls = Controls(channels=widths, halves=halves)
        self.pos_embed = copy.deepcopy(model.pos_embed)
        self.time_text_embed = copy.deepcopy(model.time_text_embed)
        self.context_embedder = copy.deepcopy(model.context_embedder) if text else None
        blocks = model.transformer_blocks[:count]
        self.transformer_blocks = (
            copy.deepcopy(blocks) if text else nn.ModuleList(image_block(b, model) for b in blocks)
        )
        self.gradient_checkpointing = False  # set by speed.gradient_checkpointing
        self.requires_grad_(True)
        for part in unused_text_layers(self.transformer_blocks[-1]):
            part.requires_grad_(False)
        proj = self.pos_embed.proj
        if feed == "concat":
            self.pos_embed.proj = widen(proj, hint_channels)
        elif feed == "add":
            like = {"device": proj.weight.device, "dtype": proj.weight.dtype}
            self.hint_proj = nn.Conv2d(hint_channels, proj.out_channels, self.patch, stride=self.patch, **like)
            for p in self.hint_proj.parameters():
                nn.init.zeros_(p)
        else:
            self.reference_proj = copy.deepcopy(proj)

    def forward(
        self, z_BCHW: Tensor, t_B: Tensor, hint_BCHW: Tensor, cond: Cond, reference_BCHW: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The features for the fusion, by tap name; arguments as for `Trunk.forward`."""
        proj = self.pos_embed.proj
        dtype = proj.weight.dtype
        if self.feed == "spatial":
            map_BCHW = stack(proj(hint_BCHW.to(dtype)), self.reference_proj, reference_BCHW)
        elif self.feed == "concat":
            map_BCHW = proj(torch.cat([z_BCHW, hint_BCHW], dim=1).to(dtype))
        else:
            map_BCHW = proj(z_BCHW.to(dtype))
        h_BLD = add_positions(self.pos_embed, map_BCHW)
        if self.feed == "add":
            h_BLD = h_BLD + self.hint_proj(hint_BCHW.to(dtype)).flatten(2).transpose(1, 2)
        outputs: Any = ()
        _, outputs = run_blocks(
            self.transformer_blocks,
            h_BLD,
            None if self.context_embedder is None else self.context_embedder(cond.tokens_BLD.to(dtype)),
            embed_time_and_text(self, t_B, cond, dtype=dtype),
            taps=self.taps,
            size=(map_BCHW.shape[-2], map_BCHW.shape[-1]),
            at=collect_blocks,
            carry=(),
            checkpointing=self if self.gradient_checkpointing else None,
        )
        if self.feed == "spatial":
            outputs = tuple(concat_halves(h) for h in outputs)
        return dict(zip(self.controls.channels, outputs, strict=True))


def unused_text_layers(block: Any) -> list[nn.Module]:
    """The last joint block's layers whose text output is unused: frozen, because DDP would wait for their gradients."""
    parts = [getattr(block, "ff_context", None)]
    parts += [getattr(block.attn, name, None) for name in ("to_add_out", "add_q_proj", "norm_added_q")]
    return [part for part in parts if isinstance(part, nn.Module)]


def image_block(block: Any, model: Any) -> SD3SingleTransformerBlock:
    """The image stream of a joint block as a block with the same weights, without a second attention (SD3.5 medium)."""
    single = SD3SingleTransformerBlock(
        dim=model.inner_dim,
        num_attention_heads=model.config.num_attention_heads,
        attention_head_dim=model.config.attention_head_dim,
    )
    attention: Any = single.attn
    attention.norm_q, attention.norm_k = copy.deepcopy(block.attn.norm_q), copy.deepcopy(block.attn.norm_k)
    target, source = single.state_dict(), block.state_dict()
    # With a second attention the first norm has nine outputs, of which the last three are that attention's.
    single.load_state_dict({name: source[name][: len(value)] for name, value in target.items()}, assign=True)
    for p in single.parameters():  # not shared with the prior
        p.data = p.data.clone()
    return single
