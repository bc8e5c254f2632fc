"""Fresh priors: untrained denoisers around finished codecs and text towers, for the shipped priors' own training.

One CLIP text tower makes an SD, two an SDXL, two with a transformer an SD3 (whose T5 is absent). The folders written
are diffusers pipelines' own. Used by priors/denoiser.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from restore_lab.backbones.mmdit import MMDiTBackbone
from restore_lab.backbones.schedule import Schedule
from restore_lab.backbones.text.clip import TextEncoder
from restore_lab.backbones.text.sd3 import TripleTextEncoder
from restore_lab.backbones.unet import UNetBackbone

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel

    from restore_lab.backbones.base import Backbone
    from restore_lab.backbones.codec.codec import Codec

SUFFIXES = ("", "_2")  # of the text encoders' folders


def fresh_unet(config: Mapping[str, Any], *, clips: Sequence[Path], codec: Codec, schedule: Schedule) -> UNetBackbone:
    """An untrained UNet prior.

    Args:
        config: of the UNet2DConditionModel; channels in and out and the conditions' widths are filled in.
        clips: CLIPModel folders: one for an SD, two for an SDXL.
        codec: a finished codec.
        schedule: the noise schedule.
    """
    from diffusers import UNet2DConditionModel

    kinds = ("CLIPTextModel", "CLIPTextModelWithProjection")[: len(clips)]
    text = TextEncoder(
        encoders=[text_tower(folder, kind) for kind, folder in zip(kinds, clips, strict=True)],
        tokenizers=[tokenizer_of(folder) for folder in clips],
        penultimate=len(clips) == 2,
        cache_bytes=0,
    )
    filled = dict(config) | {"in_channels": codec.channels, "out_channels": codec.channels}
    filled["cross_attention_dim"] = sum(encoder.config.hidden_size for encoder in text.encoders)
    if text.penultimate:
        pooled = text.encoders[1].config.projection_dim
        filled["addition_embed_type"] = "text_time"
        filled["projection_class_embeddings_input_dim"] = pooled + 6 * filled["addition_time_embed_dim"]
    return UNetBackbone(unet=UNet2DConditionModel(**filled), codec=codec, text=text, schedule=schedule)


def fresh_mmdit(config: Mapping[str, Any], *, clips: Sequence[Path], codec: Codec, schedule: Schedule) -> MMDiTBackbone:
    """An untrained SD3 without T5.

    Args:
        config: of the SD3Transformer2DModel; channels and the conditions' widths are filled in.
        clips: two folders of CLIPModels or of text towers with projection.
        codec: a finished codec.
        schedule: the noise schedule.
    """
    from diffusers import SD3Transformer2DModel

    towers = [text_tower(folder, "CLIPTextModelWithProjection") for folder in clips]
    filled = dict(config) | {"in_channels": codec.channels, "out_channels": codec.channels}
    filled["joint_attention_dim"] = sum(tower.config.hidden_size for tower in towers)
    filled["pooled_projection_dim"] = sum(tower.config.projection_dim for tower in towers)
    filled["caption_projection_dim"] = filled["num_attention_heads"] * filled["attention_head_dim"]
    text = TripleTextEncoder(
        clips=towers,
        clip_tokenizers=[tokenizer_of(folder) for folder in clips],
        t5=None,
        t5_tokenizer=None,
        width=filled["joint_attention_dim"],
        pooled=filled["pooled_projection_dim"],
        t5_length=0,
        first_width=towers[0].config.hidden_size,
        cache_bytes=0,
    )
    transformer = SD3Transformer2DModel(**filled)
    start_at_zero(transformer)
    return MMDiTBackbone(transformer=transformer, codec=codec, text=text, schedule=schedule)


def start_at_zero(transformer: SD3Transformer2DModel) -> None:
    """DiT's start (Peebles & Xie 2023, adaLN-Zero): every block is the identity, the output is zero."""
    norms = [transformer.norm_out]
    for block in transformer.transformer_blocks:
        norms += [block.norm1, block.norm1_context]
    for layer in (*(norm.linear for norm in norms), transformer.proj_out):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)


def text_tower(folder: Path, kind: str) -> Any:
    """The text tower of a CLIPModel's folder, or a text encoder's own, in float32."""
    import transformers

    cls = getattr(transformers, kind)
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if isinstance(config, transformers.CLIPConfig):
        config.text_config.projection_dim = config.projection_dim  # a CLIPModel's folder says it once, for both towers
        config = config.text_config
    return cls.from_pretrained(folder, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True)


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer beside a CLIPModel's weights, or in the pipeline's folder that belongs to a text encoder."""
    from transformers import CLIPTokenizer

    beside = folder.parent / folder.name.replace("text_encoder", "tokenizer")
    home = beside if folder.name.startswith("text_encoder") else folder
    return CLIPTokenizer.from_pretrained(home, local_files_only=True)


def save_pipeline(backbone: Backbone, scheduler: Any, folder: Path) -> None:
    """Write a prior as a diffusers pipeline's folder in half precision."""
    import diffusers

    vae, text = backbone.codec.vae.half(), backbone.text
    parts: dict[str, Any] = {"vae": vae, "scheduler": scheduler}
    for index, (encoder, tokenizer) in enumerate(zip(text.encoders, text.tokenizers, strict=True)):
        parts[f"text_encoder{SUFFIXES[index]}"] = encoder.half()
        parts[f"tokenizer{SUFFIXES[index]}"] = tokenizer
    if isinstance(backbone, MMDiTBackbone):
        if vae.config.shift_factor is None:  # SD3's pipeline adds it
            vae.register_to_config(shift_factor=0.0)
        pipeline = diffusers.StableDiffusion3Pipeline(
            **parts, transformer=backbone.denoiser.half(), text_encoder_3=None, tokenizer_3=None
        )
    elif len(text.encoders) == 2:
        pipeline = diffusers.StableDiffusionXLPipeline(
            **parts, unet=backbone.denoiser.half(), feature_extractor=None, force_zeros_for_empty_prompt=False
        )
    else:
        pipeline = diffusers.StableDiffusionPipeline(
            **parts,
            unet=backbone.denoiser.half(),
            feature_extractor=None,
            safety_checker=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
