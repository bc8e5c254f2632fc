"""Untrained priors: new denoisers with trained codecs and text towers, to train the shipped priors (denoiser.py).

A UNet with one CLIP text tower is an SD, with two an SDXL; a transformer with two is an SD3 without T5. Priors are
saved as folders of diffusers pipelines.
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
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
    from transformers import CLIPTokenizer

    from restore_lab.backbones.base import Backbone
    from restore_lab.backbones.codec.codec import Codec

_TEXT_SUFFIXES = ("", "_2")  # of the folders of text encoders and tokenizers


def fresh_unet(config: Mapping[str, Any], *, clips: Sequence[Path], codec: Codec, schedule: Schedule) -> UNetBackbone:
    """An untrained SD or SDXL.

    Args:
        config: of the UNet2DConditionModel; channels and widths of the conditions are filled in.
        clips: CLIPModel folders, one for an SD, two for an SDXL.
        codec: a trained codec.
        schedule: the noise schedule.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    classes = ("CLIPTextModel", "CLIPTextModelWithProjection")[: len(clips)]
    towers = [load_text_tower(folder, name) for name, folder in zip(classes, clips, strict=True)]
    text = TextEncoder(
        encoders=towers,
        tokenizers=[load_tokenizer(folder) for folder in clips],
        penultimate=len(clips) == 2,
        cache_bytes=0,
    )
    filled: dict[str, Any] = {**config, "in_channels": codec.channels, "out_channels": codec.channels}
    filled["cross_attention_dim"] = sum(tower.config.hidden_size for tower in towers)
    if text.penultimate:
        pooled = towers[1].config.projection_dim
        filled["addition_embed_type"] = "text_time"
        filled["projection_class_embeddings_input_dim"] = pooled + 6 * filled["addition_time_embed_dim"]
    return UNetBackbone(unet=UNet2DConditionModel(**filled), codec=codec, text=text, schedule=schedule)


def fresh_mmdit(config: Mapping[str, Any], *, clips: Sequence[Path], codec: Codec, schedule: Schedule) -> MMDiTBackbone:
    """An untrained SD3 without T5.

    Args:
        config: of the SD3Transformer2DModel; channels and widths of the conditions are filled in.
        clips: two folders of CLIPModels or of CLIPTextModelWithProjections.
        codec: a trained codec.
        schedule: the noise schedule.
    """
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    towers = [load_text_tower(folder, "CLIPTextModelWithProjection") for folder in clips]
    filled: dict[str, Any] = {**config, "in_channels": codec.channels, "out_channels": codec.channels}
    filled["joint_attention_dim"] = sum(tower.config.hidden_size for tower in towers)
    filled["pooled_projection_dim"] = sum(tower.config.projection_dim for tower in towers)
    filled["caption_projection_dim"] = filled["num_attention_heads"] * filled["attention_head_dim"]
    text = TripleTextEncoder(
        clips=towers,
        clip_tokenizers=[load_tokenizer(folder) for folder in clips],
        t5=None,
        t5_tokenizer=None,
        width=filled["joint_attention_dim"],
        pooled=filled["pooled_projection_dim"],
        t5_length=0,
        first_width=towers[0].config.hidden_size,
        cache_bytes=0,
    )
    transformer = SD3Transformer2DModel(**filled)
    initialise_at_zero(transformer)
    return MMDiTBackbone(transformer=transformer, codec=codec, text=text, schedule=schedule)


def initialise_at_zero(transformer: SD3Transformer2DModel) -> None:
    """DiT's initialisation (Peebles & Xie 2023, adaLN-Zero): every block is the identity, the output is zero."""
    norms: list[Any] = [transformer.norm_out]
    for block in transformer.transformer_blocks:
        norms += [block.norm1, block.norm1_context]
    for layer in (*(norm.linear for norm in norms), transformer.proj_out):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)


def load_text_tower(folder: Path, class_name: str) -> Any:
    """The text tower in a CLIPModel's or a text encoder's folder, in float32, as a class of transformers."""
    import transformers

    cls = getattr(transformers, class_name)
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if isinstance(config, transformers.CLIPConfig):
        text_config: Any = config.text_config
        text_config.projection_dim = config.projection_dim  # a CLIPModel has one for both towers
        config = text_config
    return cls.from_pretrained(folder, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer in a CLIPModel's folder, or in the folder "tokenizer" next to a pipeline's "text_encoder"."""
    from transformers import CLIPTokenizer

    sibling = folder.parent / folder.name.replace("text_encoder", "tokenizer")
    home = sibling if folder.name.startswith("text_encoder") else folder
    return CLIPTokenizer.from_pretrained(home, local_files_only=True)


def save_pipeline(backbone: Backbone, scheduler: Any, folder: Path) -> None:
    """Write a prior as the folder of a diffusers pipeline, in half precision."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

    vae: Any = backbone.codec.vae.half()
    text = backbone.text
    parts: dict[str, Any] = {"vae": vae, "scheduler": scheduler}
    for index, (encoder, tokenizer) in enumerate(zip(text.encoders, text.tokenizers, strict=True)):
        parts[f"text_encoder{_TEXT_SUFFIXES[index]}"] = encoder.half()
        parts[f"tokenizer{_TEXT_SUFFIXES[index]}"] = tokenizer
    if isinstance(backbone, MMDiTBackbone):
        if vae.config.shift_factor is None:  # SD3's pipeline adds it
            vae.register_to_config(shift_factor=0.0)
        parts |= {"transformer": backbone.denoiser.half(), "text_encoder_3": None, "tokenizer_3": None}
        pipeline = StableDiffusion3Pipeline(**parts)
    elif len(text.encoders) == 2:
        parts |= {"unet": backbone.denoiser.half(), "feature_extractor": None}
        pipeline = StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=False)
    else:
        parts |= {"unet": backbone.denoiser.half(), "feature_extractor": None, "safety_checker": None}
        pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipeline.save_pretrained(folder)
