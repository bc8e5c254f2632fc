"""The UNet family (SD 1.5, SD 2.1, SDXL, tiny_sd): a frozen prior with taps for an `Edit`.

Codec, text encoders, noise schedule and denoiser in one interface. The denoiser is diffusers' UNet2DConditionModel, run
by the loop of unet_loop.py; with `at=identity` its output equals diffusers' forward bit for bit.
Shapes: z (B, C, H, W) latents, t (B,) integer timesteps. Selected by `backbone=tiny_sd|sd15|sd21|sdxl`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from restore_lab.backbones.base import Backbone
from restore_lab.backbones.codec.codec import Codec
from restore_lab.backbones.schedule import Schedule
from restore_lab.backbones.text.clip import TextEncoder
from restore_lab.backbones.unet_loop import embed_time_and_size, run_decoder_half, run_encoder_half
from restore_lab.backbones.unet_taps import check_supported, decoder_taps, encoder_taps
from restore_lab.types import Cond, Edit, identity_edit


class UNetBackbone(Backbone):
    """A frozen UNet prior; its taps are `encoder_taps`, then `decoder_taps`."""

    family = "unet"

    def __init__(self, *, unet: UNet2DConditionModel, codec: Codec, text: TextEncoder, schedule: Schedule) -> None:
        super().__init__(codec=codec, text=text, schedule=schedule)
        check_supported(unet)
        self.unet = unet
        self.encoder_taps = encoder_taps(unet)
        self.decoder_taps = decoder_taps(unet)
        self.taps = self.encoder_taps + self.decoder_taps
        self.multiple = codec.compression * max(tap.stride for tap in self.taps)
        self.freeze()

    @property
    def denoiser(self) -> UNet2DConditionModel:
        return self.unet

    @property
    def token_width(self) -> int:
        return self.unet.config["cross_attention_dim"]

    @property
    def temb_width(self) -> int:
        return self.unet.time_embedding.linear_2.out_features

    def embed(
        self, texts: Sequence[str], size: tuple[int, int], *, originals: Sequence[tuple[int, int]] | None = None
    ) -> Cond:
        """The condition for one text per image, with size conditioning only for SDXL."""
        tokens_BLD, pooled_BD = self.text(texts)
        if getattr(self.unet, "add_embedding", None) is None:
            return Cond(tokens_BLD=tokens_BLD)
        ids = [[float(n) for n in (*original, 0, 0, *size)] for original in originals or [size] * len(texts)]
        # float32 whatever the encoders' dtype: bfloat16 rounds 1001 pixels to 1000.
        size_BD = torch.tensor(ids, dtype=torch.float32, device=tokens_BLD.device)
        return Cond(tokens_BLD=tokens_BLD, pooled_BD=pooled_BD, size_BD=size_BD)

    def forward(self, z_BCHW: Tensor, t_B: Tensor, cond: Cond, at: Edit = identity_edit, carry: Any = None) -> Tensor:
        """As in `Backbone`; t holds integers."""
        dtype = self.unet.conv_in.weight.dtype
        ctx_BLD = cond.tokens_BLD.to(dtype)
        temb_BD = embed_time_and_size(self.unet, t_B, cond, dtype=dtype)
        h = self.unet.conv_in(z_BCHW.to(dtype))
        h, skips, carry = run_encoder_half(
            self.unet, h, temb_BD, ctx_BLD, taps=self.encoder_taps, at=at, carry=carry, visual_BLD=cond.visual_BLD
        )
        h, _ = run_decoder_half(
            self.unet.up_blocks,
            h,
            skips,
            temb_BD,
            ctx_BLD,
            taps=self.decoder_taps,
            at=at,
            carry=carry,
            visual_BLD=cond.visual_BLD,
        )
        if self.unet.conv_norm_out is not None and self.unet.conv_act is not None:
            h = self.unet.conv_act(self.unet.conv_norm_out(h))
        return self.unet.conv_out(h).to(z_BCHW.dtype)
