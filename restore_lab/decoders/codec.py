"""The codec's decoder. `decoder=codec`.

Shapes of all decoders: latents (B, C, h, w), normalised -> images (B, 3, H, W), near [0, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from restore_lab.backbones.base import Backbone
    from restore_lab.backbones.codec.codec import Codec
    from restore_lab.types import Hint


class CodecDecoder(nn.Module):
    """The codec's decoder; no parameters."""

    in_checkpoint = False

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()

    def forward(self, z_BCHW: Tensor, hint: Hint, codec: Codec) -> Tensor:
        return codec.decode(z_BCHW, clamp=False)
