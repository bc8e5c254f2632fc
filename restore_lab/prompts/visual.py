"""Visual prompts: features of the LQ from a frozen image encoder. `prompt/visual=none|clip|dino`.

CLIP's projected image embedding (Diff-Restorer, section III-B): the LQ is resized by its short side, cropped at the
centre and normalised, as by CLIP's image processor.
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

from restore_lab.storage.foreign import check_model, json_of
from restore_lab.storage.paths import place_of
from restore_lab.system.quiet import silence_libraries


class ClipVision(nn.Module):
    """A frozen CLIP image tower with its projection.

    Args:
        path: a CLIPModel's folder, "asset:NAME", or a hub id.
        meta: build it without weights, on the current device; its config is the folder's, or a shipped one.

    Raises:
        ValueError: if there is no such model.
    """

    def __init__(self, *, path: str, meta: bool = False) -> None:
        super().__init__()
        if meta:
            self._set(build_clip(encoder_config(path)), mean=(0.0,) * 3, std=(1.0,) * 3)
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
        self._set(clip, mean=processor.image_mean, std=processor.image_std)

    def _set(self, clip: Any, *, mean: Sequence[float], std: Sequence[float]) -> None:
        self.tower, self.projection = clip.vision_model, clip.visual_projection
        self.requires_grad_(False).eval()
        self.size, self.width = int(clip.config.vision_config.image_size), int(clip.config.projection_dim)
        self.mean, self.std = list(mean), list(std)

    def train(self, mode: bool = True) -> ClipVision:
        """Stay in eval mode: the encoder is frozen, whatever the mode of the module around it."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, lq_BCHW: Tensor) -> Tensor:
        """Image embeddings (B, 1, E) of images in [0, 1]."""
        pixels = preprocess(lq_BCHW, short=self.size, crop=self.size, mean=self.mean, std=self.std)
        pooled_BD = self.tower(pixel_values=pixels.to(self.projection.weight.dtype)).pooler_output
        return self.projection(pooled_BD)[:, None].to(lq_BCHW.dtype)  # Diff-Restorer, Eq. 2: P_CLIP


class DinoVision(nn.Module):
    """A frozen DINOv2, with or without registers.

    Args:
        path: its folder or a hub id.
        meta: build it without weights, on the current device; its config is the folder's, or a shipped one.

    Raises:
        ValueError: if there is no such model.
    """

    def __init__(self, *, path: str, meta: bool = False) -> None:
        super().__init__()
        from transformers import AutoImageProcessor, AutoModel, Dinov2Config

        if meta:
            self.tower = AutoModel.from_config(Dinov2Config(**encoder_config(path)))
            self._set(short=256, crop=224, mean=(0.0,) * 3, std=(1.0,) * 3)
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
        self._set(
            short=int(processor.size["shortest_edge"]),
            crop=int(processor.crop_size["height"]),
            mean=processor.image_mean,
            std=processor.image_std,
        )

    def _set(self, *, short: int, crop: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.requires_grad_(False).eval()
        self.short, self.crop = short, crop
        self.width = int(self.tower.config.hidden_size)
        self.mean, self.std = list(mean), list(std)

    def train(self, mode: bool = True) -> DinoVision:
        """Stay in eval mode: the encoder is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, lq_BCHW: Tensor) -> Tensor:
        """Tokens (B, 1 + patches, E) of the last layer, of images in [0, 1]."""
        pixels = preprocess(lq_BCHW, short=self.short, crop=self.crop, mean=self.mean, std=self.std)
        return self.tower(pixel_values=pixels).last_hidden_state.to(lq_BCHW.dtype)


def preprocess(image_BCHW: Tensor, *, short: int, crop: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images in [0, 1] resized to a short side of `short` pixels (bicubic), centre-cropped to `crop`, normalised."""
    from torchvision.transforms.v2 import functional as V

    if image_BCHW.device.type == "xla":  # XLA has no such resize and would run it on the host
        rows, columns = resize_matrices(*image_BCHW.shape[-2:], short=short)
        resized = rows.to(image_BCHW) @ image_BCHW @ columns.to(image_BCHW)
    else:
        resized = _resize(image_BCHW, [short])
    return V.normalize(V.center_crop(resized, [crop, crop]), list(mean), list(std))


def _resize(image_BCHW: Tensor, size: list[int]) -> Tensor:
    """Bicubic, antialiased."""
    from torchvision.transforms.v2 import functional as V

    return V.resize(image_BCHW, size, interpolation=V.InterpolationMode.BICUBIC, antialias=True)


@cache
def resize_matrices(height: int, width: int, *, short: int) -> tuple[Tensor, Tensor]:
    """The resize as two matrices, (H', H) and (W, W'): it is linear and separable."""
    sides = _resize(torch.zeros(1, height, width), [short]).shape[-2:]
    rows, columns = (_resize(torch.eye(n)[None], [m, n])[0] for n, m in zip((height, width), sides, strict=True))
    return rows, columns.T


def encoder_config(path: str) -> dict[str, Any]:
    """The config of an image encoder: the folder's, or the shipped one for the hub id.

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


def build_clip(config: dict[str, Any]) -> Any:
    """A CLIPModel without weights."""
    from transformers import CLIPConfig, CLIPModel

    return CLIPModel(CLIPConfig(**config))
