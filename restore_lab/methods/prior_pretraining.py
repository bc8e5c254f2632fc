"""The training of a shipped latent diffusion prior: a UNet2DConditionModel from nothing, on captioned scenes.

The codec and the text encoders are those of finished folders and stay frozen; one caption in ten is dropped, so that
the prior can be guided. The loss is the denoising loss in the schedule's own prediction (tiny_sd: velocity at zero
terminal SNR). One text encoder makes an SD, two an SDXL, which is also told the size that an image had before it was
brought to the training size (Podell et al., section 2.2). Selected by `experiment=priors/tiny_sd|tiny_sdxl`, stage
`unet`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from restore_lab.artefacts import place_of
from restore_lab.backbones.codec import Codec
from restore_lab.backbones.schedule import Schedule
from restore_lab.backbones.text import TextEncoder
from restore_lab.backbones.unet import UNetBackbone
from restore_lab.degradation.resize import resize
from restore_lab.methods.training import Optimisation, TrainingModule
from restore_lab.quiet import quiet
from restore_lab.random import uniform

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffusers import UNet2DConditionModel

    from restore_lab.objectives.denoising import Denoising
    from restore_lab.prompts.sources import Dropout
    from restore_lab.types import Batch

SUFFIXES = ("", "_2")  # of the text encoders' folders


class PriorPretraining(TrainingModule):
    """Trains the UNet of an SD-shaped prior and writes the whole diffusers folder.

    Args:
        codec: a folder with a trained `AutoencoderKL` (stage `codec`).
        clip: CLIPModel folders, whose text towers become the prior's text encoders: one for an SD, two for an SDXL.
        unet: config of the UNet2DConditionModel; channels in and out and the conditions' widths are filled in.
        scheduler: a diffusers scheduler config.
        objective: the denoising loss.
        dropout: of the captions.
        optimisation: learning rate and schedule.
        smallest: half of the images are shrunk to a share of their sides between this and 1 and enlarged again; an SDXL
            is told the sides in between as the original size.
    """

    def __init__(
        self,
        *,
        codec: str,
        clip: Sequence[str],
        unet: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        objective: Denoising,
        dropout: Dropout,
        optimisation: Optimisation,
        smallest: float = 1.0,
    ) -> None:
        super().__init__(optimisation=optimisation)
        from diffusers import AutoencoderKL, DDIMScheduler

        if len(clip) not in (1, 2) or isinstance(clip, str):
            raise ValueError(f"module.clip={clip!r}: give a list of one folder (SD) or two (SDXL)")
        with quiet():
            vae = AutoencoderKL.from_pretrained(place_of(codec), torch_dtype=torch.float32)
            text = text_towers([place_of(folder) for folder in clip])
        self.scheduler = DDIMScheduler(**dict(scheduler))
        self.backbone = UNetBackbone(
            unet=denoiser(unet, text, channels=vae.config.latent_channels),
            codec=Codec(vae),
            text=text,
            schedule=Schedule.from_config(self.scheduler.config),
        )
        self.backbone.unet.requires_grad_(True)
        self.objective, self.dropout, self.smallest = objective, dropout, smallest

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The denoising loss of one batch of clean captioned images."""
        if batch.hq_BCHW is None:
            raise ValueError("a prior learns from clean images; this data source gave none")
        captions = self.dropout(batch.caption, batch, slot="semantic")
        with torch.no_grad():
            hq_BCHW, originals = shrunk(batch.hq_BCHW, batch.seed, smallest=self.smallest)
            z0_BCHW = self.backbone.codec.encode(hq_BCHW)
            cond = self.backbone.embed(captions, tuple(hq_BCHW.shape[-2:]), originals=originals)
        loss = self.objective(
            z0_BCHW,
            seeds=batch.seed,
            schedule=self.backbone.schedule,
            predict=lambda z_BCHW, t_B: self.backbone(z_BCHW, t_B, cond),
        )
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def export(self, folder: Path) -> None:
        """A diffusers pipeline's folder in half precision: Stable Diffusion's, or SDXL's if there are two encoders."""
        from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

        text = self.backbone.text
        parts: dict[str, Any] = {
            "vae": self.backbone.codec.vae.half(),
            "unet": self.backbone.unet.half(),
            "scheduler": self.scheduler,
            "feature_extractor": None,
        }
        for index, (encoder, tokenizer) in enumerate(zip(text.encoders, text.tokenizers, strict=True)):
            parts[f"text_encoder{SUFFIXES[index]}"] = encoder.half()
            parts[f"tokenizer{SUFFIXES[index]}"] = tokenizer
        if len(text.encoders) == 2:
            pipeline = StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=False)
        else:
            pipeline = StableDiffusionPipeline(**parts, safety_checker=None, requires_safety_checker=False)
        pipeline.save_pretrained(folder)


def text_towers(folders: Sequence[Path]) -> TextEncoder:
    """The text towers of CLIPModel folders: one as SD reads it, two as SDXL does (the second projected)."""
    from transformers import CLIPConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    kinds = (CLIPTextModel, CLIPTextModelWithProjection)[: len(folders)]
    encoders = []
    for kind, folder in zip(kinds, folders, strict=True):
        whole = CLIPConfig.from_pretrained(folder, local_files_only=True)
        whole.text_config.projection_dim = whole.projection_dim  # a CLIPModel's folder says it once, for both towers
        encoders.append(
            kind.from_pretrained(folder, config=whole.text_config, dtype=torch.float32, local_files_only=True)
        )
    return TextEncoder(
        encoders=encoders,
        tokenizers=[CLIPTokenizer.from_pretrained(folder, local_files_only=True) for folder in folders],
        penultimate=len(folders) == 2,
        cache_bytes=0,
    )


def denoiser(config: Mapping[str, Any], text: TextEncoder, *, channels: int) -> UNet2DConditionModel:
    """A fresh UNet that reads these text encoders."""
    from diffusers import UNet2DConditionModel

    filled = dict(config) | {"in_channels": channels, "out_channels": channels}
    filled["cross_attention_dim"] = sum(encoder.config.hidden_size for encoder in text.encoders)
    if text.penultimate:
        pooled = text.encoders[1].config.projection_dim
        filled["addition_embed_type"] = "text_time"
        filled["projection_class_embeddings_input_dim"] = pooled + 6 * filled["addition_time_embed_dim"]
    return UNet2DConditionModel(**filled)


def shrunk(image_BCHW: Tensor, seeds: Sequence[int], *, smallest: float) -> tuple[Tensor, list[tuple[int, int]]]:
    """Half of the images shrunk and enlarged again, by their own seeds, and the (height, width) that each went through.

    Args:
        image_BCHW: images in [0, 1].
        seeds: one an image.
        smallest: least share of a side, in (0, 1]; 1 leaves all as they are.
    """
    height, width = image_BCHW.shape[-2:]
    share_B = (smallest + (1 - smallest) * 2 * uniform(seeds, "original size")).clamp(max=1.0)
    originals = [(max(1, round(height * share)), max(1, round(width * share))) for share in share_B.tolist()]
    through = [
        resize(resize(image, height=h, width=w, mode="bicubic_antialias"), height=height, width=width, mode="bicubic")
        for image, (h, w) in zip(image_BCHW, originals, strict=True)
    ]
    return torch.stack(through).clamp(0, 1), originals
