"""The training of a shipped latent diffusion prior: a UNet2DConditionModel from nothing, on captioned scenes.

The codec and the text encoder are those of finished folders and stay frozen; one caption in ten is dropped, so that the
prior can be guided. The loss is the denoising loss in the schedule's own prediction (tiny_sd: velocity at zero
terminal SNR). Selected by `experiment=priors/tiny_sd`, stage `unet`.
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
from restore_lab.methods.training import Optimisation, TrainingModule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from restore_lab.objectives.denoising import Denoising
    from restore_lab.prompts.sources import Dropout
    from restore_lab.types import Batch


class PriorPretraining(TrainingModule):
    """Trains the UNet of an SD-shaped prior and writes the whole diffusers folder.

    Args:
        codec: a folder with a trained `AutoencoderKL` (stage `codec`).
        clip: a CLIPModel folder, whose text tower becomes the prior's text encoder.
        unet: config of the UNet2DConditionModel; channels in and out and the context's width are filled in.
        scheduler: a diffusers scheduler config.
        objective: the denoising loss.
        dropout: of the captions.
        optimisation: learning rate and schedule.
    """

    def __init__(
        self,
        *,
        codec: str,
        clip: str,
        unet: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        objective: Denoising,
        dropout: Dropout,
        optimisation: Optimisation,
    ) -> None:
        super().__init__(optimisation=optimisation)
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        clip_folder = place_of(clip)
        vae = AutoencoderKL.from_pretrained(codec, torch_dtype=torch.float32)
        self.tokenizer = CLIPTokenizer.from_pretrained(clip_folder, local_files_only=True)
        text = CLIPTextModel.from_pretrained(clip_folder, dtype=torch.float32, local_files_only=True)
        width = text.config.hidden_size
        denoiser = UNet2DConditionModel(
            in_channels=vae.config.latent_channels,
            out_channels=vae.config.latent_channels,
            cross_attention_dim=width,
            **dict(unet),
        )
        self.scheduler = DDIMScheduler(**dict(scheduler))
        self.backbone = UNetBackbone(
            unet=denoiser,
            codec=Codec(vae),
            text=TextEncoder(encoders=[text], tokenizers=[self.tokenizer], penultimate=False, cache_bytes=0),
            schedule=Schedule.from_config(self.scheduler.config),
        )
        denoiser.requires_grad_(True)
        self.objective, self.dropout = objective, dropout

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The denoising loss of one batch of clean captioned images."""
        if batch.hq_BCHW is None:
            raise ValueError("a prior learns from clean images; this data source gave none")
        captions = self.dropout(batch.caption, batch, slot="semantic")
        with torch.no_grad():
            z0_BCHW = self.backbone.codec.encode(batch.hq_BCHW)
            cond = self.backbone.embed(captions, tuple(batch.hq_BCHW.shape[-2:]))
        loss = self.objective(
            z0_BCHW,
            seeds=batch.seed,
            schedule=self.backbone.schedule,
            predict=lambda z_BCHW, t_B: self.backbone(z_BCHW, t_B, cond),
        )
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def export(self, folder: Path) -> None:
        """A diffusers StableDiffusionPipeline folder in half precision."""
        from diffusers import StableDiffusionPipeline

        StableDiffusionPipeline(
            vae=self.backbone.codec.vae.half(),
            text_encoder=self.backbone.text.encoders[0].half(),
            tokenizer=self.tokenizer,
            unet=self.backbone.unet.half(),
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)
