"""Maps diffusers' names to the original latent diffusion code's (LDM, sgm), for parts that several checkpoints share.

Encoder half of the UNet: `input_blocks.n` counts the first convolution, then per level each residual block (with its
attention) and the downsampler; `middle_block.0|1|2`. KL encoder: `down.i.block.j`, `mid.block_1`, and `mid.attn_1`,
whose queries, keys and values are 1x1 convolutions in LDM and linear layers in diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from restore_lab.importing.layout import Piece

if TYPE_CHECKING:
    from torch import Tensor

RESIDUAL_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
EMBEDDINGS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
}
KL_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def layers_of(blocks: Any) -> list[int]:
    """The number of residual blocks of each level of an encoder half."""
    return [len(block.resnets) for block in blocks.down_blocks]


def unet_key(name: str, *, layers: Sequence[int]) -> str | None:
    """LDM's key of a tensor in a UNet's encoder half; None if it has none.

    Args:
        name: diffusers' name, such as "down_blocks.1.resnets.0.conv1.weight".
        layers: number of residual blocks of each level.
    """
    firsts = [1 + sum(layers[:i]) + i for i in range(len(layers))]
    stem, _, ending = name.rpartition(".")
    if stem in EMBEDDINGS:
        return f"{EMBEDDINGS[stem]}.{ending}"
    if match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", stem):
        level = int(match[1])
        return f"input_blocks.{firsts[level] + layers[level]}.0.op.{ending}"
    if match := re.fullmatch(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", stem):
        place = f"input_blocks.{firsts[int(match[1])] + int(match[3])}"
        return _inside(place, 0 if match[2] == "resnets" else 1, match[2], match[4], ending)
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", stem):
        return _inside("middle_block", 1 if match[1] == "attentions" else 2 * int(match[2]), match[1], match[3], ending)
    return None


def _inside(place: str, index: int, kind: str, inner: str, ending: str) -> str | None:
    inner = RESIDUAL_BLOCK.get(inner, "") if kind == "resnets" else inner
    return f"{place}.{index}.{inner}.{ending}" if inner else None


def kl_encoder_piece(name: str) -> Piece | None:
    """The source in LDM's KL encoder of a tensor of diffusers'; None if it has no counterpart."""
    stem, _, ending = name.rpartition(".")
    renamed: Mapping[str, str] = {"conv_in": "conv_in", "conv_out": "conv_out", "conv_norm_out": "norm_out"}
    if stem in renamed:
        return Piece(key=f"{renamed[stem]}.{ending}")
    if match := re.fullmatch(r"down_blocks\.(\d+)\.resnets\.(\d+)\.(.+)", stem):
        return Piece(key=f"down.{match[1]}.block.{match[2]}.{_shortcut(match[3])}.{ending}")
    if match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", stem):
        return Piece(key=f"down.{match[1]}.downsample.conv.{ending}")
    if match := re.fullmatch(r"mid_block\.resnets\.(\d+)\.(.+)", stem):
        return Piece(key=f"mid.block_{int(match[1]) + 1}.{_shortcut(match[2])}.{ending}")
    if match := re.fullmatch(r"mid_block\.attentions\.0\.(.+)", stem):
        inner = KL_ATTENTION.get(match[1])
        return None if inner is None else Piece(key=f"mid.attn_1.{inner}.{ending}", take=linear)
    return None


def _shortcut(inner: str) -> str:
    return "nin_shortcut" if inner == "conv_shortcut" else inner


def linear(value: Tensor) -> Tensor:
    """A 1x1 convolution's weight as a linear layer's; linear weights and biases unchanged."""
    return value[:, :, 0, 0] if value.ndim == 4 and value.shape[2:] == (1, 1) else value
