"""JPEG by the real codec (libjpeg through torchvision, 4:2:0 chroma, byte-identical to Pillow's), and 8-bit rounding.

Real-ESRGAN approximates JPEG by differentiable arithmetic; no gradient is needed here, so the LQ is what a JPEG file
decodes to. CHW float in [0, 1]; a GPU image is copied to the CPU and back.
Selected by the `jpeg` stages in conf/degradation/*.yaml.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_8bit(x_CHW: Tensor) -> Tensor:
    """Clip to [0, 1] and round to uint8 levels."""
    return x_CHW.clamp(0, 1).mul_(255).round_().to(torch.uint8)


def round_8bit(x_CHW: Tensor) -> Tensor:
    """Clip to [0, 1] and round to the 256 levels of an 8-bit file, in the input's dtype."""
    return x_CHW.clamp(0, 1).mul_(255).round_().div_(255)


def jpeg(x_CHW: Tensor, *, quality: int) -> Tensor:
    """Compress and decompress an RGB image, `quality` in 1..100 on libjpeg's scale.

    Raises:
        ValueError: if the quality is outside 1..100 or the image is not RGB.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"JPEG quality {quality} is outside 1..100")
    if x_CHW.shape[0] != 3:
        raise ValueError(f"JPEG needs an RGB image, got {x_CHW.shape[0]} channels")
    from torchvision.io import decode_jpeg, encode_jpeg  # it imports torch's compiler

    file = encode_jpeg(to_8bit(x_CHW).cpu(), quality=quality)
    decoded_CHW = decode_jpeg(file)
    assert isinstance(decoded_CHW, Tensor)  # a list only for a list of files
    return decoded_CHW.to(x_CHW.device).to(x_CHW.dtype).div_(255)
