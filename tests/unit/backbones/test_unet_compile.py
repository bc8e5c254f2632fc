"""The UNet with an adaptor-like edit compiles as one graph, without recompilation between steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from restore_lab.backbones.unet import UNetBackbone
from restore_lab.types import Cond, Tap
from tests.helpers.toy_priors import toy_backbone, toy_inputs


def modulate(tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """(1 + gain) h + bias with one pair per tap, and a running mean that goes from tap to tap."""
    gain, bias = carry[tap.name]
    total = carry["total"] + h_BCHW.mean()
    return (1 + gain) * h_BCHW + bias + 0.01 * carry["total"], {**carry, "total": total}


def controls(backbone: UNetBackbone, seed: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    pairs = {tap.name: tuple(0.1 * torch.randn(2, 1, tap.channels, 1, 1, generator=draw)) for tap in backbone.taps}
    return {**pairs, "total": torch.zeros(())}


# One level, since recomputed blocks take long to trace, forwards and backwards.
SD = {
    "block_out_channels": (16,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}
# Every kind of block and tap, and attentions of different depths.
SDXL = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4),
    "transformer_layers_per_block": (1, 2),
}


@pytest.mark.parametrize(("kind", "changes", "checkpointing"), [("sd", SD, True), ("sdxl", SDXL, False)])
def test_the_unet_compiles_as_one_graph_without_recompilation(kind, changes, checkpointing) -> None:
    backbone = toy_backbone(kind, **changes)
    if checkpointing:
        backbone.unet.enable_gradient_checkpointing()

    def step(z: Tensor, t: Tensor, cond: Cond, carry: dict[str, Any]) -> Tensor:
        return backbone(z, t, cond, modulate, carry)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager" if checkpointing else "eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            z, t, cond = toy_inputs(backbone, seed=seed)
            carry = controls(backbone, seed)
            z.requires_grad_(checkpointing)
            torch.testing.assert_close(compiled(z, t, cond, carry), step(z, t, cond, carry), atol=1e-5, rtol=1e-4)
