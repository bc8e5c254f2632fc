"""CLIP-I, CLIP-T (SPIRE, section 4.1) and a Frechet distance on any CLIPModel folder, tiny_clip's or a real one.

CLIP-I: cosine similarity of the image embeddings of restored and reference. CLIP-T: of the embeddings of restored image
and caption; images without a caption have no value. Cosines are neither scaled nor clipped. tiny_fd: the Frechet
distance of the projected, unnormalised image embeddings. Metrics on tiny_clip have names of their own (tiny_*).
Preprocessing is CLIP's: short side to the model's size (bicubic, antialiased), centre crop, the folder's mean and std.
Config: metrics=offline (tiny_*), metrics=paper (clip_i, clip_t).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from restore_lab.evaluation.metrics.frechet import frechet_distance
from restore_lab.evaluation.protocol import ImageMetric, MetricUnavailable, SetMetric
from restore_lab.storage.foreign import check_model, json_of
from restore_lab.storage.identity import fingerprint
from restore_lab.system.quiet import silence_libraries

ASSETS = Path(__file__).parents[2] / "assets"
MODEL_FILES = ("model.safetensors", "pytorch_model.bin")
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def clip_folder(path: str) -> Path | None:
    """The folder of `path`: a folder, "asset:name", or a hub id in the hub's local cache; None if it is incomplete."""
    if path.startswith("asset:"):
        place = ASSETS / path.removeprefix("asset:")
        return place if _whole(place) else None
    place = Path(path).expanduser()
    if place.is_dir():
        return place if _whole(place) else None
    return _cached(path)


def _whole(folder: Path) -> bool:
    needed = ("config.json", "preprocessor_config.json")
    has_weights = any((folder / name).is_file() for name in MODEL_FILES)
    return has_weights and all((folder / name).is_file() for name in needed)


def _cached(hub_id: str) -> Path | None:
    """A snapshot in the hub's local cache, without network access."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(hub_id, "config.json")
    except HFValidationError:
        return None
    folder = Path(found).parent if isinstance(found, str) else None
    return folder if folder is not None and _whole(folder) else None


class Clip:
    """A frozen CLIP with its tokenizer; embeddings are projected, not normalised."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer, CLIPModel

        try:
            check_model(folder)
            with silence_libraries():
                self.model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            settings = json_of(folder / "preprocessor_config.json")
        except Exception as error:  # readers of damaged files raise errors of any type
            raise MetricUnavailable(f"CLIP in {folder} cannot be read: {str(error).splitlines()[0][:200]}") from error
        self.model.eval().requires_grad_(False).float()
        self.size = int(self.model.config.vision_config.image_size)
        self.length = int(self.model.config.text_config.max_position_embeddings)
        self.mean = tuple(settings.get("image_mean", OPENAI_MEAN))
        self.std = tuple(settings.get("image_std", OPENAI_STD))

    @torch.inference_mode()
    def images(self, image_BCHW: Tensor) -> Tensor:
        """Embeddings_BD of images in [0, 1]."""
        if self.model.device != image_BCHW.device:  # `to` visits all parameters
            self.model.to(image_BCHW.device)
        pixels = prepare(image_BCHW, size=self.size, mean=self.mean, std=self.std)
        return self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)

    @torch.inference_mode()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """Embeddings_BD of captions, truncated to the model's length."""
        tokens = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=self.length, return_tensors="pt"
        ).to(self.model.device)
        outputs = self.model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return self.model.text_projection(outputs.pooler_output)


def prepare(image_BCHW: Tensor, *, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """CLIP's preprocessing of images in [0, 1]: short side to `size`, centre crop, normalise."""
    height, width = image_BCHW.shape[-2:]
    short = min(height, width)
    target = (size * height // short, size * width // short)
    if target != (height, width):
        image_BCHW = F.interpolate(image_BCHW, size=target, mode="bicubic", antialias=True, align_corners=False)
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    crop = image_BCHW[..., top : top + size, left : left + size].clamp(0.0, 1.0)
    shift, spread = (torch.tensor(v, dtype=crop.dtype, device=crop.device).view(1, 3, 1, 1) for v in (mean, std))
    return (crop - shift) / spread


@functools.lru_cache(maxsize=2)
def load_clip(folder: Path) -> Clip:
    """The CLIP of a folder, shared by the metrics."""
    return Clip(folder)


class _ClipBased:
    """A metric on a CLIP folder, which may be missing."""

    id: str
    path: str
    weights: str

    def missing(self) -> str:
        if clip_folder(self.path) is not None:
            return ""
        files = f"config.json, preprocessor_config.json, {MODEL_FILES[0]} and the tokenizer"
        if self.path.startswith("asset:"):
            return f"{self.id}: no CLIP in {ASSETS / self.path.removeprefix('asset:')}; it needs {files}"
        return f"{self.id}: no CLIP at {self.path!r}, as a folder or in the Hugging Face cache; it needs {files}"

    def clip(self) -> Clip:
        folder = clip_folder(self.path)
        if folder is None:
            raise MetricUnavailable(self.missing())
        name = self.path.removeprefix("asset:") if not Path(self.path).expanduser().is_dir() else folder.name
        weights = next(folder / file for file in MODEL_FILES if (folder / file).is_file())
        self.weights = f"{name}:{fingerprint(weights)[:12]}"
        return load_clip(folder)


class ClipImage(_ClipBased, ImageMetric):
    """CLIP-I: cosine similarity of restored image and reference."""

    def __init__(self, *, name: str, path: str) -> None:
        self.id, self.path = name, path

    def __call__(self, restored_BCHW: Tensor, reference_BCHW: Tensor | None, captions: Sequence[str] | None) -> Tensor:
        if reference_BCHW is None:
            raise ValueError(f"{self.id} compares with a reference and got none; leave it out for images without one")
        clip = self.clip()
        return F.cosine_similarity(clip.images(restored_BCHW), clip.images(reference_BCHW), dim=1)


class ClipText(_ClipBased, ImageMetric):
    """CLIP-T: cosine similarity of restored image and caption."""

    needs_reference = False
    needs_caption = True

    def __init__(self, *, name: str, path: str) -> None:
        self.id, self.path = name, path

    def __call__(self, restored_BCHW: Tensor, reference_BCHW: Tensor | None, captions: Sequence[str] | None) -> Tensor:
        given = list(captions) if captions is not None else [""] * len(restored_BCHW)
        if len(given) != len(restored_BCHW):
            raise ValueError(f"{self.id}: {len(given)} captions for {len(restored_BCHW)} images; give one per image")
        clip = self.clip()
        cosine_B = F.cosine_similarity(clip.images(restored_BCHW), clip.texts(given), dim=1).cpu()
        captioned_B = torch.tensor([bool(caption.strip()) for caption in given])
        return torch.where(captioned_B, cosine_B, torch.nan)


class ClipFrechet(_ClipBased, SetMetric):
    """Frechet distance of CLIP's projected image embeddings. Lower is better."""

    higher_is_better = False

    def __init__(self, *, name: str, path: str) -> None:
        self.id, self.path = name, path

    def features(self, image_BCHW: Tensor) -> Tensor:
        return self.clip().images(image_BCHW).double().cpu()

    def distance(self, restored_ND: Tensor, reference_ND: Tensor) -> float:
        return frechet_distance(restored_ND, reference_ND)
