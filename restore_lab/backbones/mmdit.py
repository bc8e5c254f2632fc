"""The MM-DiT family (SD3, SD3.5, tiny_sd3): a frozen prior with taps for an `Edit`.

Esser et al., arXiv 2403.03206, section 4: joint blocks with attention over image patches and text tokens, which have
separate weights; SD3.5 medium's first blocks have a second attention over only the image patches. The taps are `patch`
(the embedded patches) and `block.i` after each block, with patches as a map (B, D, H / patch, W / patch) and without
text tokens. The denoiser is diffusers' SD3Transformer2DModel, run by the loop below; with `at=identity` its output
equals diffusers' forward bit for bit. Selected by `backbone=tiny_sd3|sd3|sd35_medium|sd35_large`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from diffusers.models.embeddings import PatchEmbed, get_2d_sincos_pos_embed_from_grid
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import Tensor, nn

from restore_lab.backbones.base import Backbone, extra_stream
from restore_lab.backbones.codec.codec import Codec
from restore_lab.backbones.schedule import Schedule
from restore_lab.backbones.text.clip import TextEncoder
from restore_lab.types import Cond, Edit, Tap, identity_edit


class MMDiTBackbone(Backbone):
    """A frozen prior of joint transformer blocks."""

    family = "mmdit"

    def __init__(
        self, *, transformer: SD3Transformer2DModel, codec: Codec, text: TextEncoder, schedule: Schedule
    ) -> None:
        super().__init__(codec=codec, text=text, schedule=schedule)
        self.transformer = transformer
        self.taps = mmdit_taps(transformer)
        self.multiple = codec.compression * transformer.config["patch_size"]
        self.freeze()

    @property
    def denoiser(self) -> SD3Transformer2DModel:
        return self.transformer

    @property
    def token_width(self) -> int:
        return self.transformer.config["joint_attention_dim"]

    @property
    def temb_width(self) -> int:
        return self.transformer.inner_dim

    def embed(
        self, texts: Sequence[str], size: tuple[int, int], *, originals: Sequence[tuple[int, int]] | None = None
    ) -> Cond:
        """The condition for one text per image; SD3 has no size conditioning."""
        tokens_BLD, pooled_BD = self.text(texts)
        return Cond(tokens_BLD=tokens_BLD, pooled_BD=pooled_BD)

    def forward(self, z_BCHW: Tensor, t_B: Tensor, cond: Cond, at: Edit = identity_edit, carry: Any = None) -> Tensor:
        """As in `Backbone`; t is a real number in [0, T]."""
        model = self.transformer
        dtype = model.proj_out.weight.dtype
        h_BLD = embed_patches(model.pos_embed, z_BCHW.to(dtype))
        temb_BD = embed_time_and_text(model, t_B, cond, dtype=dtype)
        ctx_BLD = model.context_embedder(cond.tokens_BLD.to(dtype))
        height, width = (side // model.config["patch_size"] for side in z_BCHW.shape[-2:])
        h_BLD, _ = run_blocks(
            model.transformer_blocks,
            h_BLD,
            ctx_BLD,
            temb_BD,
            taps=self.taps,
            size=(height, width),
            at=at,
            carry=carry,
            visual_BLD=cond.visual_BLD,
            checkpointing=model if model.gradient_checkpointing else None,
        )
        out_BLD = model.proj_out(model.norm_out(h_BLD, temb_BD))
        return unpatchify(out_BLD, size=(height, width), patch=model.config["patch_size"]).to(z_BCHW.dtype)


def mmdit_taps(model: SD3Transformer2DModel) -> tuple[Tap, ...]:
    """The taps `patch` and `block.i`, one per block, all of kind "block"."""
    names = ["patch", *(f"block.{i}" for i in range(len(model.transformer_blocks)))]
    return tuple(
        Tap(name=name, kind="block", channels=model.inner_dim, stride=model.config["patch_size"]) for name in names
    )


def embed_patches(embedder: PatchEmbed, z_BCHW: Tensor) -> Tensor:
    """Patch tokens with position embeddings, (B, L, D)."""
    return add_positions(embedder, embedder.proj(z_BCHW))


def add_positions(embedder: PatchEmbed, map_BCHW: Tensor) -> Tensor:
    """Patch tokens (B, L, D) of a map, with position embeddings from the centre of the embedder's table.

    For a map larger than the table, an error in diffusers, positions are extrapolated with the table's spacing.
    """
    patch = embedder.patch_size
    table: Any = embedder.pos_embed_max_size  # the side of the table, in patches
    height, width = map_BCHW.shape[-2:]
    if max(height, width) <= table:
        positions_LD = embedder.cropped_pos_embed(height * patch, width * patch)
    else:
        spacing = embedder.base_size / table / embedder.interpolation_scale
        rows, columns = (
            spacing * (torch.arange(side, device=map_BCHW.device) + (table - side) // 2) for side in (height, width)
        )
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"))
        positions_LD = get_2d_sincos_pos_embed_from_grid(embedder.proj.out_channels, grid).float()
    tokens_BLD = map_BCHW.flatten(2).transpose(1, 2)
    return (tokens_BLD + positions_LD).to(tokens_BLD.dtype).contiguous()


class TimeTextModules(Protocol):
    """The module that `embed_time_and_text` reads: an SD3Transformer2DModel's, or a trunk's copy."""

    @property
    def time_text_embed(self) -> Callable[[Tensor, Tensor], Tensor]: ...


def embed_time_and_text(modules: TimeTextModules, t_B: Tensor, cond: Cond, *, dtype: torch.dtype) -> Tensor:
    """The embedding (B, D) of the timestep and the pooled text.

    Raises:
        ValueError: if the condition has no pooled text.
    """
    if cond.pooled_BD is None:
        raise ValueError("this backbone needs pooled text; build the condition with embed()")
    return modules.time_text_embed(t_B, cond.pooled_BD.to(dtype))


def run_blocks(
    blocks: Iterable[nn.Module],
    h_BLD: Tensor,
    ctx_BLD: Tensor | None,
    temb_BD: Tensor,
    *,
    taps: Sequence[Tap],
    size: tuple[int, int],
    at: Edit = identity_edit,
    carry: Any = None,
    visual_BLD: Tensor | None = None,
    checkpointing: Any = None,
) -> tuple[Tensor, Any]:
    """The forward pass of the blocks.

    Args:
        blocks: joint transformer blocks, the prior's or a trunk's.
        h_BLD: embedded patches.
        ctx_BLD: embedded text tokens; None for image-only blocks.
        temb_BD: from `embed_time_and_text`.
        taps: one tap for the patches, then one per block.
        size: (height, width) of the map of patches.
        at: called at each tap; its output is the next block's input.
        carry: the edit's state before the first tap.
        visual_BLD: tokens of a visual stream, if one is installed in the joint attentions.
        checkpointing: the model whose gradient checkpointing function is used; None for no gradient checkpointing.

    Returns:
        The last block's patches (B, L, D) and the carry.
    """
    extra = extra_stream(visual_BLD, temb_BD)
    recompute = None
    if checkpointing is not None and torch.is_grad_enabled():
        recompute = checkpointing._gradient_checkpointing_func
    h_BLD, carry = _apply_edit(at, taps[0], h_BLD, temb_BD, carry, size)
    for tap, block in zip(taps[1:], blocks, strict=True):
        if ctx_BLD is None:
            h_BLD = block(h_BLD, temb_BD) if recompute is None else recompute(block, h_BLD, temb_BD)
        elif recompute is not None:
            ctx_BLD, h_BLD = recompute(block, h_BLD, ctx_BLD, temb_BD, extra)
        else:
            ctx_BLD, h_BLD = block(
                hidden_states=h_BLD, encoder_hidden_states=ctx_BLD, temb=temb_BD, joint_attention_kwargs=extra
            )
        h_BLD, carry = _apply_edit(at, tap, h_BLD, temb_BD, carry, size)
    return h_BLD, carry


def _apply_edit(
    at: Edit, tap: Tap, h_BLD: Tensor, temb_BD: Tensor, carry: Any, size: tuple[int, int]
) -> tuple[Tensor, Any]:
    """The edited patches and the carry; the edit gets a map, and the output is contiguous with or without an edit."""
    map_BCHW = h_BLD.transpose(1, 2).view(len(h_BLD), -1, *size)
    edited_BCHW, carry = at(tap, map_BCHW, temb_BD, carry)
    return (h_BLD if edited_BCHW is map_BCHW else edited_BCHW.flatten(2).transpose(1, 2).contiguous()), carry


def unpatchify(out_BLD: Tensor, *, size: tuple[int, int], patch: int) -> Tensor:
    """Patches (B, H W, patch patch C) as a map (B, C, H patch, W patch)."""
    height, width = size
    out = out_BLD.reshape(len(out_BLD), height, width, patch, patch, -1)
    out = torch.einsum("nhwpqc->nchpwq", out)
    return out.reshape(len(out), out.shape[1], height * patch, width * patch)
