"""Read a prior's text encoders and tokenizers from its folder: CLIP (SD, SDXL), and CLIP with T5 (SD3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from restore_lab.backbones.disk_cache import DiskCache
from restore_lab.backbones.loading.diffusers_folder import BackboneError, Folder
from restore_lab.backbones.text.clip import TextEncoder
from restore_lab.backbones.text.sd3 import TripleTextEncoder

CLIPS = ("CLIPTextModel", "CLIPTextModelWithProjection")
T5 = "T5EncoderModel"
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
CLIP_L_WIDTH = 768  # width of SD3's first CLIP encoder, if the folder has neither the encoder nor its config


def load_text(
    prior: Folder, *, penultimate: bool, dtype: torch.dtype, meta: bool, cache_bytes: int, disk: DiskCache | None
) -> TextEncoder:
    """The text encoder of a UNet prior, with text_encoder and, if the folder has one, text_encoder_2."""
    parts = [name for name in ENCODERS[:2] if prior.has(name)]
    encoders = [_model(prior, part, CLIPS, dtype=dtype, meta=meta) for part in parts]
    tokenizers = [] if meta else [prior.tokenizer(part) for part in parts]
    return TextEncoder(
        encoders=encoders, tokenizers=tokenizers, penultimate=penultimate, cache_bytes=cache_bytes, disk=disk
    )


def load_triple_text(
    prior: Folder,
    *,
    transformer: Any,
    without: Sequence[str],
    t5_length: int,
    dtype: torch.dtype,
    meta: bool,
    cache_bytes: int,
    disk: DiskCache | None,
) -> TripleTextEncoder:
    """SD3's text encoder; of the three models, those in `without` or not in the folder are absent.

    Raises:
        BackboneError: for an unknown name in `without`, or a part that cannot be read.
    """
    odd = sorted(set(without) - set(ENCODERS))
    if odd:
        raise BackboneError(f"backbone.without={list(without)}: {odd[0]!r} is not one of {', '.join(ENCODERS)}")
    parts = [name if prior.has(name) and name not in without else None for name in ENCODERS]
    kinds = (CLIPS[1:], CLIPS[1:], (T5,))
    models = [
        None if p is None else _model(prior, p, kind, dtype=dtype, meta=meta)
        for p, kind in zip(parts, kinds, strict=True)
    ]
    tokenizers = [None if meta or p is None else prior.tokenizer(p) for p in parts]
    config = transformer.config
    first_width = int(prior.config(ENCODERS[0])["hidden_size"]) if prior.has(ENCODERS[0]) else CLIP_L_WIDTH
    second = 0 if models[1] is None else models[1].config.hidden_size
    if first_width + second > config.joint_attention_dim:
        raise BackboneError(
            f"{prior.root}: the text towers' {first_width} + {second} numbers are more than the transformer's "
            f"{config.joint_attention_dim}; keep text_encoder/config.json, which tells where the second stands"
        )
    return TripleTextEncoder(
        clips=models[:2],
        clip_tokenizers=tokenizers[:2],
        t5=models[2],
        t5_tokenizer=tokenizers[2],
        width=config.joint_attention_dim,
        pooled=config.pooled_projection_dim,
        t5_length=t5_length,
        first_width=first_width,
        cache_bytes=cache_bytes,
        disk=disk,
    )


def _model(prior: Folder, part: str, allowed: Sequence[str], *, dtype: torch.dtype, meta: bool) -> Any:
    import transformers

    config = prior.config(part)
    name = (config.get("architectures") or [allowed[0]])[0]
    if name not in allowed:
        raise BackboneError(f"{prior.root / part}: text encoder {name!r} is not one of {', '.join(allowed)}")
    cls = getattr(transformers, name)
    if meta:
        settings = transformers.T5Config if name == T5 else transformers.CLIPTextConfig
        with torch.device("meta"):
            return cls(settings(**config))
    return prior.read(cls, part, dtype=dtype)
