"""Encoders of the LQ image to a latent: the codec's, or SUPIR's degradation-robust one. `lq_encoder=codec|robust`.

SUPIR's degradation-robust encoder (Yu et al. 2024, section 3.1) is a copy of the codec's encoder, fine-tuned such that
the frozen decoder reconstructs the LQ image without its degradation. The codec's decoder and quant_conv are shared.
Shapes: LQ (B, 3, H, W) in [0, 1] -> latents (B, C, H / compression, W / compression), normalised as the codec's.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from restore_lab.storage.paths import place_of

if TYPE_CHECKING:
    from restore_lab.backbones.base import Backbone
    from restore_lab.backbones.codec.codec import Codec

ENCODER_FILE = "encoder.safetensors"


class CodecEncoder(nn.Module):
    """The codec's encoder; no parameters."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()

    def forward(self, lq_BCHW: Tensor, codec: Codec) -> Tensor:
        return codec.encode(lq_BCHW)


class RobustEncoder(nn.Module):
    """A trainable copy of the codec's encoder.

    Args:
        backbone: the prior, whose codec's encoder is copied.
        weights: file or folder of a trained encoder; null for the codec's weights.

    Raises:
        ValueError: for a codec that is no AutoencoderKL, or weights that do not fit.
    """

    def __init__(self, backbone: Backbone, *, weights: str | None) -> None:
        super().__init__()
        vae = backbone.codec.vae
        if not isinstance(vae, AutoencoderKL):
            raise ValueError(f"lq_encoder=robust copies an AutoencoderKL's encoder; this codec is {type(vae).__name__}")
        self.encoder = copy.deepcopy(vae.encoder).requires_grad_(True)
        if weights is not None:
            self.load(place_of(weights))

    def forward(self, lq_BCHW: Tensor, codec: Codec) -> Tensor:
        """The mode of the posterior, normalised."""
        return codec.encode(lq_BCHW, encoder=self.encoder)

    def load(self, place: Path) -> None:
        """Load the weights of a trained encoder.

        Raises:
            ValueError: if the file does not exist or its weights do not fit.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = place / ENCODER_FILE if place.is_dir() else place
        if not file.is_file():
            raise ValueError(f"{file}: no such weights; train them with restore-lab train method=supir stage=encoder")
        try:
            self.encoder.load_state_dict({k: v.to(self._dtype) for k, v in load_file(file).items()})
        except (RuntimeError, SafetensorError) as error:
            first = str(error).splitlines()[0]
            raise ValueError(f"{file}: does not fit this codec's encoder ({first}); train one for it") from error

    def save(self, folder: Path) -> None:
        """Save the encoder's weights in a folder."""
        from safetensors.torch import save_file

        save_file({k: v.cpu().contiguous() for k, v in self.encoder.state_dict().items()}, folder / ENCODER_FILE)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.encoder.parameters()).dtype
