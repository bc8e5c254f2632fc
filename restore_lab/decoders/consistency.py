"""OpenAI's consistency decoder for SD 1.x latents, from diffusers. `decoder=consistency`.

Shapes: latents (B, C, h, w), normalised -> images (B, 3, H, W), near [0, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from restore_lab.storage.foreign import check_model
from restore_lab.storage.paths import place_of

if TYPE_CHECKING:
    from restore_lab.backbones.base import Backbone
    from restore_lab.backbones.codec.codec import Codec
    from restore_lab.types import Hint


class ConsistencyDecoder(nn.Module):
    """OpenAI's consistency decoder (Diff-Restorer, Table V), frozen, with the same noise for all images.

    Args:
        backbone: the prior, whose codec's latents are decoded.
        path: folder or hub id of a ConsistencyDecoderVAE.

    Raises:
        ValueError: if there is no such decoder, or the codec's latents are not in SD 1.x's shape and scale.
    """

    in_checkpoint = False

    def __init__(self, backbone: Backbone, *, path: str) -> None:
        super().__init__()
        from diffusers.models.autoencoders.consistency_decoder_vae import ConsistencyDecoderVAE

        codec = backbone.codec
        if (codec.compression, codec.channels) != (8, 4):
            raise ValueError(
                f"decoder=consistency decodes SD 1.x's latents (4 channels, an eighth of the side); this codec's have "
                f"{codec.channels} channels, 1/{codec.compression} of the side; set decoder=codec"
            )
        place = place_of(path)
        try:
            source = str(place) if place.is_dir() else path
            check_model(place)
            self.vae = ConsistencyDecoderVAE.from_pretrained(source, use_safetensors=True)
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0][:200]
            raise ValueError(f"decoder.path={path}: no consistency decoder ({first}); give its folder") from error
        if abs(codec.scale[0] - self.vae.config["scaling_factor"]) > 1e-6:
            raise ValueError(
                f"decoder=consistency decodes latents scaled by {self.vae.config['scaling_factor']}; this codec's are "
                f"scaled by {codec.scale[0]} (SDXL's are others than SD 1.x's); set decoder=codec"
            )
        self.vae.requires_grad_(False)

    def forward(self, z_BCHW: Tensor, hint: Hint, codec: Codec) -> Tensor:
        height, width = (side * codec.compression for side in z_BCHW.shape[-2:])
        if codec.pixels is not None and height * width > codec.pixels:
            raise ValueError(
                f"decoder=consistency decodes whole images, and {width}x{height} is larger than a tile; "
                "set decoder=codec, or sampler/tiling=none"
            )
        unscaled = z_BCHW / codec.scale[0] + codec.shift[0]
        # One image per call, because diffusers draws the batch's noise from one generator.
        images = [
            self.vae.decode(z[None].to(self.vae.dtype), torch.Generator().manual_seed(0), return_dict=False)[0]
            for z in unscaled
        ]
        return (torch.cat(images).to(z_BCHW.dtype) + 1) / 2
