"""The UNet's loop against diffusers' forward, bit for bit; the taps against what an edit gets."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from restore_lab.backbones.unet import UNetBackbone
from restore_lab.backbones.unet_loop import embed_time_and_size, run_encoder_half
from restore_lab.types import Cond, Tap
from tests.helpers.rounding import close
from tests.helpers.toy_priors import toy_backbone, toy_inputs

KINDS = ("sd", "sd21", "sdxl")
SIZES = ((8, 8), (7, 10))


def reference(backbone: UNetBackbone, z: Tensor, t: Tensor, cond: Cond, **extra: Any) -> Tensor:
    added = {"text_embeds": cond.pooled_BD, "time_ids": cond.size_BD}
    return backbone.unet(z, t, cond.tokens_BLD, added_cond_kwargs=added, **extra).sample


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_output_equals_diffusers_bit_for_bit(kind, train, size) -> None:
    backbone = toy_backbone(kind)
    backbone.unet.train(train)
    args = toy_inputs(backbone, size=size)
    assert torch.equal(backbone(*args), reference(backbone, *args))


def test_mixed_blocks_and_an_uncrossed_middle_equal_diffusers() -> None:
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
        "mid_block_type": "UNetMidBlock2D",
        "layers_per_block": 2,
    }
    backbone = toy_backbone("sd", **blocks)
    args = toy_inputs(backbone)
    assert torch.equal(backbone(*args), reference(backbone, *args))


def gradients(backbone: UNetBackbone, args: tuple[Tensor, Tensor, Cond], *, ours: bool) -> list[Tensor]:
    z = args[0].clone().requires_grad_(True)
    backbone.unet.zero_grad()
    out = backbone(z, *args[1:]) if ours else reference(backbone, z, *args[1:])
    out.square().sum().backward()
    return [out.detach(), z.grad, *(p.grad.clone() for p in backbone.unet.parameters())]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_output_and_gradients_equal_diffusers(kind, train) -> None:
    backbone = toy_backbone(kind)
    backbone.unet.requires_grad_(True).train(train)
    args = toy_inputs(backbone)
    plain = gradients(backbone, args, ours=True)
    # Not bit for bit: autograd adds up in an order of its own.
    assert all(close(a, b) for a, b in zip(plain, gradients(backbone, args, ours=False), strict=True))
    backbone.unet.enable_gradient_checkpointing()
    ours, theirs = (gradients(backbone, args, ours=ours) for ours in (True, False))
    assert all(close(a, b) for a, b in zip(ours, theirs, strict=True))
    assert all(close(a, b) for a, b in zip(ours, plain, strict=True))


def test_checkpointing_recomputes_resnets_and_no_tap() -> None:
    backbone = toy_backbone("sd")
    backbone.unet.enable_gradient_checkpointing()
    runs, shown = [], []
    backbone.unet.down_blocks[0].resnets[0].register_forward_pre_hook(lambda *_: runs.append(1))

    def watch(tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: Any) -> tuple[Tensor, Any]:
        shown.append(tap.name)
        return h_BCHW, carry

    z, t, cond = toy_inputs(backbone)
    backbone(z.requires_grad_(True), t, cond, watch).sum().backward()
    assert len(runs) == 2
    assert shown == [tap.name for tap in backbone.taps]


@pytest.mark.parametrize("kind", KINDS)
def test_taps_declare_the_shapes_that_an_edit_gets(kind) -> None:
    backbone = toy_backbone(kind)
    args = toy_inputs(backbone)

    def note(tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: Any) -> tuple[Tensor, Any]:
        assert temb_BD.shape == (2, 64)
        return h_BCHW, seen.append((tap, h_BCHW.shape))

    seen: list[tuple[Tap, torch.Size]] = []
    backbone(*args, note)
    assert tuple(tap for tap, _ in seen) == backbone.taps
    assert all(shape == (2, tap.channels, 8 // tap.stride, 8 // tap.stride) for tap, shape in seen)
    assert len({tap.name for tap in backbone.taps}) == len(backbone.taps)
    skips = [tap.channels for tap in backbone.taps if tap.kind == "encoder"]
    assert [tap.skip for tap in backbone.taps if tap.kind == "join"] == skips[::-1]
    assert backbone.multiple == 4 * max(tap.stride for tap in backbone.taps)


def test_a_join_is_decoder_then_skip_and_passes_the_carry_on() -> None:
    backbone = toy_backbone("sd")
    kept: dict[str, Tensor] = {}

    def keep(tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: int) -> tuple[Tensor, int]:
        kept[tap.name] = h_BCHW
        assert carry == len(kept) - 1
        return h_BCHW, carry + 1

    backbone(*toy_inputs(backbone), keep, 0)
    joins = [tap for tap in backbone.taps if tap.kind == "join"]
    skips = [tap for tap in backbone.taps if tap.kind == "encoder"]
    assert torch.equal(kept[joins[0].name][:, : -joins[0].skip], kept["mid"])
    for join, skip in zip(joins, reversed(skips), strict=True):
        assert torch.equal(kept[join.name][:, -join.skip :], kept[skip.name])


@pytest.mark.parametrize("kind", KINDS)
def test_residuals_at_encoder_and_middle_are_diffusers_controlnet_arguments(kind) -> None:
    backbone = toy_backbone(kind)
    z, t, cond = toy_inputs(backbone)
    draw = torch.Generator().manual_seed(3)
    wanted = [tap for tap in backbone.taps if tap.kind in ("encoder", "middle")]
    residuals = {tap: torch.randn(2, tap.channels, 8 // tap.stride, 8 // tap.stride, generator=draw) for tap in wanted}

    def add(tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: Any) -> tuple[Tensor, Any]:
        return (h_BCHW + residuals[tap] if tap in residuals else h_BCHW), carry

    *down, mid = residuals.values()
    theirs = reference(backbone, z, t, cond, down_block_additional_residuals=down, mid_block_additional_residual=mid)
    assert torch.equal(backbone(z, t, cond, add), theirs)
    assert not torch.equal(theirs, backbone(z, t, cond))


@pytest.mark.parametrize("kind", ["block", "upsample", "join"])
def test_an_edit_at_every_tap_of_a_kind_changes_the_output(kind) -> None:
    backbone = toy_backbone("sd")
    args = toy_inputs(backbone)
    before = backbone(*args)
    for wanted in (tap for tap in backbone.taps if tap.kind == kind):
        after = backbone(*args, lambda tap, h, temb, carry, w=wanted: (h + 1 if tap == w else h, carry))
        assert not torch.equal(before, after), wanted


@pytest.mark.parametrize("kind", KINDS)
def test_a_trunk_of_copied_modules_runs_by_the_same_loop(kind) -> None:
    backbone = toy_backbone(kind)
    trunk = torch.nn.Module()
    embedding = ("time_proj", "time_embedding", "add_time_proj", "add_embedding")
    for name in (*embedding, "conv_in", "down_blocks", "mid_block"):
        if getattr(backbone.unet, name, None) is not None:
            setattr(trunk, name, copy.deepcopy(getattr(backbone.unet, name)).requires_grad_(True))
    z, t, cond = toy_inputs(backbone)
    temb = embed_time_and_size(trunk, t, cond, dtype=torch.float32)
    mid, skips, _ = run_encoder_half(trunk, trunk.conv_in(z), temb, cond.tokens_BLD, taps=backbone.encoder_taps)
    kept: dict[str, Tensor] = {}
    backbone(z, t, cond, lambda tap, h, temb, carry: (kept.setdefault(tap.name, h), carry))
    assert close(mid, kept["mid"])
    assert all(close(skip, kept[f"skip.{i}"]) for i, skip in enumerate(skips))
    mid.sum().backward()
    assert all(p.grad is not None for p in trunk.parameters())
    assert all(p.grad is None for p in backbone.parameters())


def test_the_prior_is_frozen_and_stays_in_eval_mode() -> None:
    backbone = toy_backbone("sd")
    torch.nn.Sequential(backbone).train()
    assert not any(module.training for module in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())


def test_sdxl_without_pooled_text_is_refused() -> None:
    backbone = toy_backbone("sdxl")
    z, t, cond = toy_inputs(backbone)
    with pytest.raises(ValueError, match="pooled text and size"):
        backbone(z, t, Cond(tokens_BLD=cond.tokens_BLD))


def test_a_block_the_loop_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="AttnDownBlock2D is not supported"):
        toy_backbone("sd", down_block_types=("AttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"))
