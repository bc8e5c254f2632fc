"""Load a backbone: a diffusers-format folder or a hub id to a `Backbone`.

Where it may lie is told in places.py, how its text encoders are read in text_loading.py. `meta=True` builds the modules
on torch's meta device without any weights, so that taps, parameters and FLOPs of SDXL can be described on a laptop.
Config lines: `backbone=tiny_sd|tiny_sd3|sd15|sd21|sdxl|sd3`, `backbone.path=/folder/of/a/finetune`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from restore_lab.artefacts import fingerprint
from restore_lab.backbones.base import Backbone
from restore_lab.backbones.codec import Codec
from restore_lab.backbones.disk_cache import DiskCache
from restore_lab.backbones.places import DENOISERS, BackboneError, find_folder, read_json, read_part
from restore_lab.backbones.schedule import Schedule
from restore_lab.backbones.text_loading import load_text, load_triple_text
from restore_lab.quiet import quiet

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CACHE_BYTES = 256 * 2**20


def load_backbone(
    path: str | Sequence[str],
    *,
    family: str,
    dtype: str = "float32",
    meta: bool = False,
    gradient_checkpointing: bool = False,
    cache_text: bool = True,
    without: Sequence[str] = (),
    t5_length: int = 256,
    cache_dir: str | None = None,
    cache_latents: bool = False,
    cache_gigabytes: float = 50.0,
) -> Backbone:
    """The frozen prior at `path`.

    Args:
        path: a place, or places tried in order (see places.py).
        family: "unet" (SD 1.5, SD 2.1, SDXL) or "mmdit" (SD3, SD3.5); what the yaml declares must be what is there.
        dtype: of the weights: float32, float16 or bfloat16 (an SDXL codec that overflows in float16 stays float32).
        meta: build from configs on the meta device in float32, without weights and tokenizers.
        gradient_checkpointing: recompute the denoiser's blocks in the backward pass.
        cache_text: remember texts; turn it off where they never come twice (endless procedural captions).
        without: text encoders of an MM-DiT that are left out ("text_encoder_3" spares T5's nine gigabytes).
        t5_length: T5's tokens, zeros if it is absent.
        cache_dir: folder that keeps text embeddings across runs; None for none.
        cache_latents: whether it keeps latents of good images too, of use where the same crops come again.
        cache_gigabytes: what it may hold.

    Raises:
        BackboneError: naming what was tried, if nothing is there, or what is there cannot be read.
    """
    if family not in DENOISERS:
        known = "unet (SD 1.5, SD 2.1, SDXL shapes), mmdit (SD3, SD3.5)"
        raise BackboneError(f"backbone family {family!r} is not known; one of {known}")
    if dtype not in DTYPES:
        raise BackboneError(f"backbone dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    folder = find_folder([path] if isinstance(path, str) else list(path), family=family, meta=meta)
    denoiser = _diffusers_part(folder / DENOISERS[family], dtype=DTYPES[dtype], meta=meta)
    vae = _diffusers_part(folder / "vae", dtype=DTYPES[dtype], meta=meta)
    if dtype == "float16" and vae.config.get("force_upcast", False):
        vae = vae.to(torch.float32)
    if gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
    disk: DiskCache | None = None
    if cache_dir is not None and not meta:
        read = [place for name in ("vae", "text_encoder*", "tokenizer*") for place in sorted(folder.glob(name))]
        base = json.dumps([[place.name, fingerprint(place)] for place in read])
        disk = DiskCache(cache_dir, base=base, max_bytes=int(cache_gigabytes * 10**9))
    parts: dict[str, Any] = {
        "codec": Codec(vae, disk=disk if cache_latents else None),
        "schedule": load_schedule(folder),
    }
    settings: dict[str, Any] = {
        "dtype": DTYPES[dtype],
        "meta": meta,
        "cache_bytes": CACHE_BYTES if cache_text else 0,
        "disk": disk,
    }
    if family == "mmdit":
        from restore_lab.backbones.mmdit import MMDiTBackbone

        text = load_triple_text(folder, transformer=denoiser, without=without, t5_length=t5_length, **settings)
        return MMDiTBackbone(transformer=denoiser, text=text, **parts)
    from restore_lab.backbones.unet import UNetBackbone

    text = load_text(folder, penultimate=denoiser.config.addition_embed_type == "text_time", **settings)
    return UNetBackbone(unet=denoiser, text=text, **parts)


def load_schedule(folder: Path) -> Schedule:
    """The noise schedule of a diffusers-format folder."""
    file = folder / "scheduler" / "scheduler_config.json"
    try:
        return Schedule.from_config(read_json(file))
    except ValueError as error:
        raise BackboneError(f"{file}: {error}") from error


def _diffusers_part(folder: Path, *, dtype: torch.dtype, meta: bool) -> Any:
    """The denoiser or the vae of a folder, whose config names its class."""
    from diffusers import AutoencoderKL, AutoencoderTiny, SD3Transformer2DModel, UNet2DConditionModel

    classes = (UNet2DConditionModel, SD3Transformer2DModel, AutoencoderKL, AutoencoderTiny)
    known = {cls.__name__: cls for cls in classes}
    config = read_json(folder / "config.json")
    name = config.get("_class_name")
    if name not in known:
        raise BackboneError(f"{folder}: class {name!r} is not one of {', '.join(known)}")
    if meta:
        with quiet(), torch.device("meta"):
            return known[name].from_config(config)
    return read_part(known[name], folder, dtype=dtype)
