"""StableSR's controllable feature wrapping (CFW; Wang et al. 2024, section 3.3). `decoder=cfw`.

At every level but the coarsest and the finest, the codec encoder's features F_e of the LQ image are fused with the
decoder's features F_d:
    F_m = F_d + w C([F_e, F_d])
C is a residual block, two RRDBs and a residual block. w is 1 in training; in inference it trades quality (0, the
codec's decoder) against fidelity (1). The codec's encoder and decoder are unchanged. Weights come from `restore-lab
import`. Shapes: latents (B, C, h, w), normalised -> images (B, 3, H, W), near [0, 1].
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

from restore_lab.adaptors.fusion.zero_sft import group_norm
from restore_lab.decoders.degradation_aware import run_decoder
from restore_lab.storage.paths import place_of

if TYPE_CHECKING:
    from restore_lab.backbones.base import Backbone
    from restore_lab.backbones.codec.codec import Codec
    from restore_lab.types import Hint

IMPORT_FILE = "adaptor.safetensors"  # written by `restore-lab import`
DECODER_PREFIX = "decoder."  # of the decoder's tensors in that file
GROWTH = 32  # output channels of each convolution in a dense block
RESIDUAL_SCALE = 0.2  # Real-ESRGAN's residual scaling


class Dense(nn.Module):
    """ESRGAN's dense block of five convolutions, each with all previous outputs as input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        outs = [GROWTH] * 4 + [width]
        self.convs = nn.ModuleList(nn.Conv2d(width + i * GROWTH, out, 3, padding=1) for i, out in enumerate(outs))

    def forward(self, h_BCHW: Tensor) -> Tensor:
        features = [h_BCHW]
        for conv in self.convs[:-1]:
            features.append(F.leaky_relu(conv(torch.cat(features, dim=1)), 0.2))
        return h_BCHW + RESIDUAL_SCALE * self.convs[-1](torch.cat(features, dim=1))


class RRDB(nn.Module):
    """ESRGAN's residual-in-residual dense block: three dense blocks with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Dense(width) for _ in range(3)))

    def forward(self, h_BCHW: Tensor) -> Tensor:
        return h_BCHW + RESIDUAL_SCALE * self.blocks(h_BCHW)


class Wrapping(nn.Module):
    """C, the fusion network of one level."""

    def __init__(self, width: int, *, dense: int) -> None:
        super().__init__()
        groups = group_norm(width).num_groups
        settings = {"out_channels": width, "temb_channels": None, "groups": groups, "eps": 1e-6}
        self.first = ResnetBlock2D(in_channels=2 * width, **settings)
        self.dense = nn.Sequential(*(RRDB(width) for _ in range(dense)))
        self.last = ResnetBlock2D(in_channels=width, **settings)

    def forward(self, lq_BCHW: Tensor, h_BCHW: Tensor) -> Tensor:
        inner = self.dense(self.first(torch.cat([lq_BCHW, h_BCHW], dim=1), None))
        return self.last(inner, None)


class WrappingDecoder(nn.Module):
    """The codec's decoder with CFW.

    Args:
        backbone: the prior, whose codec is used.
        dense: number of RRDBs at each level.
        w: weight of the LQ features, 0 to 1.
        weights: folder or file of an import; null for untrained weights.

    Raises:
        ValueError: for a codec that is no AutoencoderKL, or weights that do not fit.
    """

    def __init__(self, backbone: Backbone, *, dense: int, w: float, weights: str | None) -> None:
        super().__init__()
        vae = backbone.codec.vae
        if not isinstance(vae, AutoencoderKL):
            raise ValueError(f"decoder=cfw wraps an AutoencoderKL's; this codec is {type(vae).__name__}")
        self.w, self.in_checkpoint = float(w), weights is None  # imported weights are not saved again
        widths = tuple(reversed(vae.config["block_out_channels"]))[1:-1]
        self.blocks = nn.ModuleList(Wrapping(width, dense=dense) for width in widths)
        if weights is not None:
            self.load(place_of(weights))

    def forward(self, z_BCHW: Tensor, hint: Hint, codec: Codec) -> Tensor:
        """The images of latents, with the hint's LQ image."""
        levels = codec.features(hint.lq_BCHW)[::-1]

        def wrap(index: int, h_BCHW: Tensor) -> Tensor:
            if not 1 <= index <= len(self.blocks):
                return h_BCHW
            update_BCHW = self.blocks[index - 1](levels[index].float(), h_BCHW.float())
            return h_BCHW + self.w * update_BCHW.to(h_BCHW.dtype)  # F_m

        return codec.decode(z_BCHW, clamp=False, decoder=lambda z: run_decoder(codec.vae.decoder, z, at=wrap))

    def load(self, place: Path) -> None:
        """Load imported weights.

        Raises:
            ValueError: if the file does not exist or its weights do not fit.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = place / IMPORT_FILE if place.is_dir() else place
        if not file.is_file():
            raise ValueError(f"{file}: no such weights; restore-lab import vqgan_cfw_00011.ckpt makes them")
        try:
            self.load_state_dict({name.removeprefix(DECODER_PREFIX): value for name, value in load_file(file).items()})
        except (RuntimeError, SafetensorError) as error:
            first = " ".join(str(error).split())[:200]
            raise ValueError(f"{file}: does not fit this codec's decoder ({first})") from error
