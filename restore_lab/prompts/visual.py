"""What an image encoder sees in the LQ, in the place of words. `prompt/visual=none|clip|dino`.

CLIP's projected image embedding (Diff-Restorer, section III-B): the LQ brought to the encoder's size, its short side
first and the middle of it, as CLIP's own processor does, normalised by CLIP's mean and deviation.
DINOv2's tokens, the class token first (InstantIR, section 3.2). Shapes: LQ (B, 3, H, W) in [0, 1] -> (B, 1, E) for
CLIP, (B, 1 + patches, E) for DINOv2.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from restore_lab.storage.artefact import place_of
from restore_lab.storage.foreign import check_model, json_of
from restore_lab.system.quiet import silence_libraries


class ClipVision(nn.Module):
    """A frozen CLIP image tower with its projection.

    Args:
        path: a CLIPModel's folder, "asset:NAME", or a hub id.
        meta: build it without weights, on the current device; its config is the folder's, or one that we ship.

    Raises:
        ValueError: if there is no such model.
    """

    def __init__(self, *, path: str, meta: bool = False) -> None:
        super().__init__()
        if meta:
            self._take(clip_of(described(path)), mean=(0.0,) * 3, std=(1.0,) * 3)
            return
        from transformers import CLIPImageProcessor, CLIPModel

        place = place_of(path)
        source = str(place) if place.is_dir() else path
        try:
            check_model(place)
            with silence_libraries():
                clip: Any = CLIPModel.from_pretrained(source, dtype=torch.float32, use_safetensors=True)
            processor = CLIPImageProcessor.from_pretrained(source)
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0][:200]
            raise ValueError(f"prompt.visual.path={path}: no CLIP ({first}); give a CLIPModel's folder") from error
        self._take(clip, mean=processor.image_mean, std=processor.image_std)

    def _take(self, clip: Any, *, mean: Sequence[float], std: Sequence[float]) -> None:
        self.tower, self.projection = clip.vision_model, clip.visual_projection
        self.requires_grad_(False).eval()
        self.size, self.width = int(clip.config.vision_config.image_size), int(clip.config.projection_dim)
        self.mean, self.std = list(mean), list(std)

    def train(self, mode: bool = True) -> ClipVision:
        """Stays in eval mode: it is not trained, whatever the module around it does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, lq_BCHW: Tensor) -> Tensor:
        """The embeddings."""
        pixels = framed(lq_BCHW, short=self.size, crop=self.size, mean=self.mean, std=self.std)
        pooled_BD = self.tower(pixel_values=pixels.to(self.projection.weight.dtype)).pooler_output
        return self.projection(pooled_BD)[:, None].to(lq_BCHW.dtype)


class DinoVision(nn.Module):
    """A frozen DINOv2, with registers or without.

    Args:
        path: its folder or a hub id.
        meta: build it without weights, on the current device; its config is the folder's, or one that we ship.

    Raises:
        ValueError: if there is no such model.
    """

    def __init__(self, *, path: str, meta: bool = False) -> None:
        super().__init__()
        from transformers import AutoImageProcessor, AutoModel, Dinov2Config

        if meta:
            self.tower = AutoModel.from_config(Dinov2Config(**described(path)))
            self._take(short=256, crop=224, mean=(0.0,) * 3, std=(1.0,) * 3)
            return

        place = place_of(path)
        source = str(place) if place.is_dir() else path
        try:
            check_model(place)
            with silence_libraries():
                self.tower = AutoModel.from_pretrained(
                    source, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
                )
                processor: Any = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0][:200]
            raise ValueError(f"prompt.visual.path={path}: no DINOv2 ({first}); give its folder") from error
        self._take(
            short=int(processor.size["shortest_edge"]),
            crop=int(processor.crop_size["height"]),
            mean=processor.image_mean,
            std=processor.image_std,
        )

    def _take(self, *, short: int, crop: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.requires_grad_(False).eval()
        self.short, self.crop = short, crop
        self.width = int(self.tower.config.hidden_size)
        self.mean, self.std = list(mean), list(std)

    def train(self, mode: bool = True) -> DinoVision:
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, lq_BCHW: Tensor) -> Tensor:
        """The tokens of the last layer."""
        pixels = framed(lq_BCHW, short=self.short, crop=self.crop, mean=self.mean, std=self.std)
        return self.tower(pixel_values=pixels).last_hidden_state.to(lq_BCHW.dtype)


def framed(image_BCHW: Tensor, *, short: int, crop: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The middle square of `crop` pixels of images whose short side is brought to `short`, normalised."""
    from torchvision.transforms.v2 import functional as V

    if image_BCHW.device.type == "xla":  # XLA has no such resize, and would leave it to the host
        rows, columns = resizing(*image_BCHW.shape[-2:], short=short)
        resized = rows.to(image_BCHW) @ image_BCHW @ columns.to(image_BCHW)
    else:
        resized = _resize(image_BCHW, [short])
    return V.normalize(V.center_crop(resized, [crop, crop]), list(mean), list(std))


def _resize(image_BCHW: Tensor, size: list[int]) -> Tensor:
    """Bicubic, antialiased."""
    from torchvision.transforms.v2 import functional as V

    return V.resize(image_BCHW, size, interpolation=V.InterpolationMode.BICUBIC, antialias=True)


@cache
def resizing(height: int, width: int, *, short: int) -> tuple[Tensor, Tensor]:
    """The resize as two matrices, (H', H) and (W, W'), since it is linear and takes rows and columns apart."""
    sides = _resize(torch.zeros(1, height, width), [short]).shape[-2:]
    rows, columns = (_resize(torch.eye(n)[None], [m, n])[0] for n, m in zip((height, width), sides, strict=True))
    return rows, columns.T


def described(path: str) -> dict[str, Any]:
    """The config of an image encoder: the folder's, or the shipped one with the hub id's name.

    Raises:
        ValueError: if there is neither.
    """
    shipped = Path(__file__).parent / "configs" / f"{path.rpartition('/')[2]}.json"
    file = place_of(path) / "config.json"
    if not file.is_file():
        file = shipped
    if not file.is_file():
        raise ValueError(f"prompt.visual.path={path}: neither an image encoder's folder nor a config that we ship")
    return json_of(file)


def clip_of(config: dict[str, Any]) -> Any:
    """A CLIPModel without weights."""
    from transformers import CLIPConfig, CLIPModel

    return CLIPModel(CLIPConfig(**config))
