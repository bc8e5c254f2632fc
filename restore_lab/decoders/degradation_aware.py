"""Diff-Restorer's degradation-aware decoder (section III-D, Fig. 6). `decoder=degradation_aware`.

It is a fine-tuned copy of the codec's decoder. At the coarsest levels, a refinement block fuses its features z_i with
the codec encoder's features z_i^lq of the LQ image (Eq. 5):
    z~ = Conv([z_i, z_i^lq]),  f = sigmoid(Linear(P_D)),  z^ = Res(z~ * f) + z_i
The residual block's last convolution is zero-initialised, so an untrained decoder equals the codec's. Shapes: latents
(B, C, h, w), normalised -> images (B, 3, H, W), near [0, 1].
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from restore_lab.adaptors.fusion.zero_conv import zero_conv
from restore_lab.adaptors.fusion.zero_sft import group_norm
from restore_lab.backbones.codec.banded import decode_in_bands, features_in_bands
from restore_lab.backbones.codec.bands import Canvas, map_bands
from restore_lab.config.kinds import CountOrZero
from restore_lab.config.validate import check_arguments

if TYPE_CHECKING:
    from restore_lab.backbones.base import Backbone
    from restore_lab.backbones.codec.codec import Codec
    from restore_lab.types import Hint


class RefinementBlock(nn.Module):
    """The refinement block of one level (Eq. 5).

    Args:
        channels: channels of the decoder's and of the encoder's features.
        embedding: width of P_D; 0 for no gate.
    """

    def __init__(self, channels: int, *, embedding: int) -> None:
        super().__init__()
        self.merge = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.gate = nn.Linear(embedding, channels) if embedding else None
        # No norm first: it would cancel the gate.
        self.body = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            group_norm(channels),
            nn.SiLU(),
            zero_conv(channels, channels, size=3),
        )

    def forward(self, z_BCHW: Tensor, lq_BCHW: Tensor, degradation_BD: Tensor | None) -> Tensor:
        return self.body(self._merge(z_BCHW, lq_BCHW, degradation_BD)) + z_BCHW  # Diff-Restorer, Eq. 5: z^

    def in_bands(
        self, z: Canvas, lq: Canvas, degradation_1D: Tensor | None, *, rows: int, device: torch.device
    ) -> Canvas:
        """`forward` for one image whose feature maps are canvases."""
        activate, first, norm, _, last = self.body
        like = torch.empty(0, dtype=self.merge.weight.dtype, device=device)
        channels = self.merge.out_channels
        h = map_bands(
            lambda z_band, lq_band: first(activate(self._merge(z_band, lq_band, degradation_1D))),
            [z, lq],
            like=like,
            channels=channels,
            rows=rows,
            halo=2,
        )
        normalise = h.bind_norm(norm)
        return map_bands(
            lambda h_band, z_band: last(activate(normalise(h_band))) + z_band,  # Diff-Restorer, Eq. 5: z^
            [h, z],
            like=like,
            channels=channels,
            rows=rows,
            halo=1,
            into=z,
        )

    def _merge(self, z_BCHW: Tensor, lq_BCHW: Tensor, degradation_BD: Tensor | None) -> Tensor:
        merged = self.merge(torch.cat([z_BCHW, lq_BCHW], dim=1))  # z~
        if self.gate is not None and degradation_BD is not None:
            merged = merged * torch.sigmoid(self.gate(degradation_BD))[:, :, None, None]  # Diff-Restorer, Eq. 5: z~ * f
        return merged


@check_arguments
class DegradationAwareDecoder(nn.Module):
    """A trainable copy of the codec's decoder with refinement blocks.

    Args:
        backbone: the prior, whose codec's decoder is copied.
        blocks: number of refinement blocks, from the coarsest level on; 3 in the paper, 0 for Table V, "w/o DRB".
        embedding: width of P_D; 0 for blocks without a gate.

    Raises:
        ValueError: for a codec that is no AutoencoderKL, or more blocks than it has levels.
    """

    in_checkpoint = True  # saved with the method's weights

    def __init__(self, backbone: Backbone, *, blocks: CountOrZero, embedding: CountOrZero) -> None:
        super().__init__()
        vae = backbone.codec.vae
        if not isinstance(vae, AutoencoderKL):
            raise ValueError(
                f"decoder=degradation_aware copies an AutoencoderKL's; this codec is {type(vae).__name__}; "
                "set decoder=codec"
            )
        widths = tuple(reversed(vae.config["block_out_channels"]))
        if blocks > len(widths):
            raise ValueError(f"decoder.blocks={blocks}: this codec has {len(widths)} levels")
        self.embedding = embedding
        self.decoder = copy.deepcopy(vae.decoder).float().requires_grad_(True)  # float32 for training
        self.blocks = nn.ModuleList(RefinementBlock(width, embedding=embedding) for width in widths[:blocks])

    def forward(self, z_BCHW: Tensor, hint: Hint, codec: Codec) -> Tensor:
        """The images of latents, refined with the hint's LQ image and degradation embedding.

        Raises:
            ValueError: if `embedding` is set and the hint has no degradation embedding.
        """
        if self.blocks and self.embedding and hint.degradation_BD is None:
            raise ValueError(
                "this decoder is modulated by a degradation embedding, and the method has none; set decoder.embedding=0"
            )
        p_BD, rows = hint.degradation_BD, codec.rows(hint.lq_BCHW.shape[-2:])
        if rows is not None:
            return codec.decode(z_BCHW, clamp=False, decoder=lambda z: self._in_bands(z.float(), hint, codec, rows))
        lq_features = codec.features(hint.lq_BCHW)[::-1] if self.blocks else []

        def refine(index: int, h_BCHW: Tensor) -> Tensor:
            return self.blocks[index](h_BCHW, lq_features[index].float(), p_BD) if index < len(self.blocks) else h_BCHW

        return codec.decode(z_BCHW, clamp=False, decoder=lambda z: run_decoder(self.decoder, z.float(), at=refine))

    def _in_bands(self, z: Tensor, hint: Hint, codec: Codec, rows: int) -> Tensor:
        """The decoder in bands of `rows` rows, for large images; the LQ features are stored in canvases."""
        p_BD = hint.degradation_BD
        features: list[list[Canvas]] = [[] for _ in hint.lq_BCHW]
        if self.blocks:
            features = [list(features_in_bands(codec.vae.encoder, lq[None], rows=rows))[::-1] for lq in hint.lq_BCHW]

        def refine(number: int, index: int, h: Canvas) -> Canvas:
            if index >= len(self.blocks):
                return h
            block = self.blocks[index]
            assert isinstance(block, RefinementBlock)
            p_1D = None if p_BD is None else p_BD[number : number + 1]
            return block.in_bands(h, features[number][index], p_1D, rows=rows, device=z.device)

        return decode_in_bands(self.decoder, z, rows=rows, refine=refine)


def run_decoder(decoder: Any, z_BCHW: Tensor, *, at: Callable[[int, Tensor], Tensor]) -> Tensor:
    """The output of diffusers' Decoder, with `at` applied to the features of each level before upsampling.

    Args:
        decoder: an AutoencoderKL's decoder.
        z_BCHW: the decoder's input, after post_quant_conv.
        at: a function of the level's index, 0 for the coarsest, and its features, which returns the features to use.
    """
    h = decoder.mid_block(decoder.conv_in(z_BCHW), None)
    for index, level in enumerate(decoder.up_blocks):
        for resnet in level.resnets:
            h = resnet(h, temb=None)
        h = at(index, h)
        for upsampler in level.upsamplers or ():
            h = upsampler(h)
    return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(h)))
