"""Load a backbone: a diffusers-format folder or a hub id to a `UNetBackbone`.

Where it may lie is told in places.py. `meta=True` builds the modules on torch's meta device without any weights, so
that taps, parameters and FLOPs of SDXL can be described on a laptop. Config lines: `backbone=tiny_sd|sd15|sd21|sdxl`,
`backbone.path=/folder/of/a/finetune`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from restore_lab.backbones.codec import Codec
from restore_lab.backbones.places import BackboneError, find_folder, read_json
from restore_lab.backbones.schedule import Schedule
from restore_lab.backbones.text import TextEncoder
from restore_lab.backbones.unet import UNetBackbone
from restore_lab.quiet import quiet

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CACHE_BYTES = 256 * 2**20
TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")


def load_backbone(
    path: str | Sequence[str],
    *,
    family: str,
    dtype: str = "float32",
    meta: bool = False,
    gradient_checkpointing: bool = False,
    cache_text: bool = True,
) -> UNetBackbone:
    """The frozen prior at `path`.

    Args:
        path: a place, or places tried in order (see places.py).
        family: "unet"; what the yaml declares must be what the folder holds.
        dtype: of the weights: float32, float16 or bfloat16 (an SDXL codec that overflows in float16 stays float32).
        meta: build from configs on the meta device in float32, without weights and tokenizers.
        gradient_checkpointing: recompute the UNet's resnets and transformer blocks in the backward pass.
        cache_text: remember texts; turn it off where they never come twice (endless procedural captions).

    Raises:
        BackboneError: naming what was tried, if nothing is there, or what is there cannot be read.
    """
    if family != "unet":
        raise BackboneError(f"backbone family {family!r} is not known; use unet (SD 1.5, SD 2.1, SDXL shapes)")
    if dtype not in DTYPES:
        raise BackboneError(f"backbone dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    folder = find_folder([path] if isinstance(path, str) else list(path), meta=meta)
    unet = _diffusers_part(folder / "unet", dtype=DTYPES[dtype], meta=meta)
    vae = _diffusers_part(folder / "vae", dtype=DTYPES[dtype], meta=meta)
    if dtype == "float16" and vae.config.get("force_upcast", False):
        vae = vae.to(torch.float32)
    if gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return UNetBackbone(
        unet=unet,
        codec=Codec(vae),
        text=_text(
            folder,
            penultimate=unet.config.addition_embed_type == "text_time",
            dtype=DTYPES[dtype],
            meta=meta,
            cache_bytes=CACHE_BYTES if cache_text else 0,
        ),
        schedule=load_schedule(folder),
    )


def load_schedule(folder: Path) -> Schedule:
    """The noise schedule of a diffusers-format folder."""
    file = folder / "scheduler" / "scheduler_config.json"
    try:
        return Schedule.from_config(read_json(file))
    except ValueError as error:
        raise BackboneError(f"{file}: {error}") from error


def _diffusers_part(folder: Path, *, dtype: torch.dtype, meta: bool) -> Any:
    """The unet or the vae of a folder, whose config names its class."""
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

    known = {cls.__name__: cls for cls in (UNet2DConditionModel, AutoencoderKL, AutoencoderTiny)}
    config = read_json(folder / "config.json")
    name = config.get("_class_name")
    if name not in known:
        raise BackboneError(f"{folder}: class {name!r} is not one of {', '.join(known)}")
    if meta:
        with quiet(), torch.device("meta"):
            return known[name].from_config(config)
    return _read(known[name], folder, dtype=dtype)


def _text(folder: Path, *, penultimate: bool, dtype: torch.dtype, meta: bool, cache_bytes: int) -> TextEncoder:
    """text_encoder and, if it is there, text_encoder_2, with their tokenizers."""
    from transformers import CLIPTokenizer

    parts = [folder / name for name in ("text_encoder", "text_encoder_2") if (folder / name).is_dir()]
    encoders = [_text_model(part, dtype=dtype, meta=meta) for part in parts]
    homes = [part.parent / part.name.replace("text_encoder", "tokenizer") for part in parts]
    tokenizers = []
    for home in () if meta else homes:
        try:
            tokenizers.append(CLIPTokenizer.from_pretrained(home, local_files_only=True))
        except (OSError, ValueError, TypeError) as error:
            raise BackboneError(f"{home}: not a CLIP tokenizer that can be read ({_first_line(error)})") from error
    return TextEncoder(encoders=encoders, tokenizers=tokenizers, penultimate=penultimate, cache_bytes=cache_bytes)


def _text_model(folder: Path, *, dtype: torch.dtype, meta: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = read_json(folder / "config.json")
    name = (config.get("architectures") or ["CLIPTextModel"])[0]
    if name not in TEXT_ENCODERS:
        raise BackboneError(f"{folder}: text encoder {name!r} is not one of {', '.join(TEXT_ENCODERS)}")
    cls = CLIPTextModel if name == "CLIPTextModel" else CLIPTextModelWithProjection
    if meta:
        with torch.device("meta"):
            return cls(CLIPTextConfig(**config))
    return _read(cls, folder, dtype=dtype)


def _read(cls: Any, folder: Path, *, dtype: torch.dtype) -> Any:
    """One part with its weights; a weight that is missing or of another shape is an error, not a warning."""
    files = [file.name for file in (*folder.glob("*.safetensors"), *folder.glob("*.bin"))]
    half_only = bool(files) and all(".fp16" in name for name in files)
    try:
        with quiet():
            model, info = cls.from_pretrained(
                folder,
                torch_dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
                variant="fp16" if half_only else None,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BackboneError(f"{folder}: weights cannot be read ({_first_line(error)})") from error
    wrong = sorted(str(key) for key in (*info["missing_keys"], *info["mismatched_keys"]))
    if wrong:
        raise BackboneError(f"{folder}: {len(wrong)} weights are missing or misshapen, the first is {wrong[0]}")
    return model


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
