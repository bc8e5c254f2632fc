"""StableSR's controllable feature wrapping (Wang et al. 2024, section 3.3): the codec's decoder sees the LQ's features.

At every level but the latent's own and the image's, the codec's encoder features F_e of the LQ join the decoder's F_d:
    F_m = F_d + w C([F_e, F_d])
C is a residual block, dense blocks (two of RRDB) and a residual block. w is 1 in training; at test it trades quality
(0, the codec's decoder) for fidelity (1). Encoder and decoder stay the codec's. `decoder=cfw`. Weights come from
`restore-lab import`. Shapes: latents (B, C, h, w), normalised -> images (B, 3, H, W), near [0, 1].
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

from restore_lab.adaptors.fusion.zero_sft import group_norm
from restore_lab.decoders.degradation_aware import through
from restore_lab.storage.artefact import place_of

if TYPE_CHECKING:
    from restore_lab.backbones.base import Backbone
    from restore_lab.backbones.codec.codec import Codec
    from restore_lab.types import Hint

FILE = "adaptor.safetensors"  # what an import writes
PREFIX = "decoder."  # before its tensors' names there
GROWTH = 32  # channels that each convolution of a dense block adds
RESIDUAL = 0.2  # Real-ESRGAN's scale of every residual


class Dense(nn.Module):
    """Five convolutions, each of which sees all before it (ESRGAN's dense block)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        outs = [GROWTH] * 4 + [width]
        self.convs = nn.ModuleList(nn.Conv2d(width + i * GROWTH, out, 3, padding=1) for i, out in enumerate(outs))

    def forward(self, h_BCHW: Tensor) -> Tensor:
        seen = [h_BCHW]
        for conv in self.convs[:-1]:
            seen.append(F.leaky_relu(conv(torch.cat(seen, dim=1)), 0.2))
        return h_BCHW + RESIDUAL * self.convs[-1](torch.cat(seen, dim=1))


class RRDB(nn.Module):
    """Three dense blocks inside a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Dense(width) for _ in range(3)))

    def forward(self, h_BCHW: Tensor) -> Tensor:
        return h_BCHW + RESIDUAL * self.blocks(h_BCHW)


class Wrapping(nn.Module):
    """C, at one level."""

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
    """The codec's decoder with wrappings.

    Args:
        backbone: whose codec decodes.
        dense: RRDBs at each level.
        w: how far the LQ's features count, 0 to 1.
        weights: an import's folder or file; null starts untrained.

    Raises:
        ValueError: for a codec without such a decoder, or weights that do not fit.
    """

    def __init__(self, backbone: Backbone, *, dense: int, w: float, weights: str | None) -> None:
        super().__init__()
        vae = backbone.codec.vae
        if not isinstance(vae, AutoencoderKL):
            raise ValueError(f"decoder=cfw wraps an AutoencoderKL's; this codec is {type(vae).__name__}")
        self.w, self.stored = float(w), weights is None  # those of a file of their own are not the method's
        widths = tuple(reversed(vae.config["block_out_channels"]))[1:-1]
        self.blocks = nn.ModuleList(Wrapping(width, dense=dense) for width in widths)
        if weights is not None:
            self.load(place_of(weights))

    def forward(self, z_BCHW: Tensor, hint: Hint, codec: Codec) -> Tensor:
        """Images of latents; the LQ is the hint's."""
        levels = codec.features(hint.lq_BCHW)[::-1]

        def wrapped(index: int, h_BCHW: Tensor) -> Tensor:
            if not 1 <= index <= len(self.blocks):
                return h_BCHW
            found = self.blocks[index - 1](levels[index].float(), h_BCHW.float())
            return h_BCHW + self.w * found.to(h_BCHW.dtype)

        return codec.decode(z_BCHW, clamp=False, decoder=lambda z: through(codec.vae.decoder, z, at=wrapped))

    def load(self, place: Path) -> None:
        """Read imported weights.

        Raises:
            ValueError: if there are none, or they do not fit.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = place / FILE if place.is_dir() else place
        if not file.is_file():
            raise ValueError(f"{file}: no such weights; restore-lab import vqgan_cfw_00011.ckpt makes them")
        try:
            self.load_state_dict({name.removeprefix(PREFIX): value for name, value in load_file(file).items()})
        except (RuntimeError, SafetensorError) as error:
            first = " ".join(str(error).split())[:200]
            raise ValueError(f"{file}: does not fit this codec's decoder ({first})") from error
