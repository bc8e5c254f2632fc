"""Trains the denoiser of a shipped latent diffusion prior from scratch, on captioned scenes.

Codec and text encoders are trained before and stay frozen; one caption in ten is dropped for classifier-free guidance.
The loss is the denoising loss with the schedule's prediction type (tiny_sd: velocity at zero terminal SNR; tiny_sd3:
flow matching). An SDXL is also conditioned on the size of an image before it was resized to the training size (Podell
et al., section 2.2). Selected by `experiment=priors/tiny_sd|tiny_sdxl|tiny_sd3`, stage `unet` or `transformer`.
Shapes: images (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from restore_lab.backbones.codec.codec import Codec
from restore_lab.backbones.schedule import Schedule
from restore_lab.degradation.resize import resize
from restore_lab.methods.trainable import Trainable
from restore_lab.priors.factory import fresh_mmdit, fresh_unet, save_pipeline
from restore_lab.random import uniform
from restore_lab.storage.paths import place_of
from restore_lab.system.quiet import silence_libraries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from restore_lab.objectives.denoising import Denoising
    from restore_lab.prompts.dropout import Dropout
    from restore_lab.types import Batch


class PriorPretraining(Trainable):
    """Trains the denoiser of a prior and exports the whole prior as a diffusers folder.

    Args:
        codec: folder of a trained `AutoencoderKL` (stage `codec`).
        clip: CLIPModel folders, whose text towers become the prior's text encoders: one for an SD, two for an SDXL or
            an SD3.
        scheduler: config of a DDIMScheduler, or with a transformer of a FlowMatchEulerDiscreteScheduler.
        objective: the denoising loss.
        dropout: caption dropout.
        unet: config of a UNet2DConditionModel; exactly one of `unet` and `transformer` is given.
        transformer: config of an SD3Transformer2DModel. In both, channels and widths of the conditions are filled in.
        smallest: half of the images are shrunk by a factor between this and 1 and enlarged again; an SDXL reads the
            smaller size as the original size.
    """

    def __init__(
        self,
        *,
        codec: str,
        clip: Sequence[str],
        scheduler: Mapping[str, Any],
        objective: Denoising,
        dropout: Dropout,
        unet: Mapping[str, Any] | None = None,
        transformer: Mapping[str, Any] | None = None,
        smallest: float = 1.0,
    ) -> None:
        super().__init__()
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

        expected = "two (SD3)" if transformer is not None else "one folder (SD) or two (SDXL)"
        if isinstance(clip, str) or len(clip) not in (1, 2) or (transformer is not None and len(clip) != 2):
            raise ValueError(f"module.clip={clip!r}: give a list of {expected}")
        if (unet is None) == (transformer is None):
            raise ValueError("give the config of a unet or of a transformer, one of the two")
        with silence_libraries():
            vae = AutoencoderKL.from_pretrained(place_of(codec), torch_dtype=torch.float32, use_safetensors=True)
            self.scheduler = (DDIMScheduler if transformer is None else FlowMatchEulerDiscreteScheduler)(**scheduler)
            settings: dict[str, Any] = {
                "clips": [place_of(folder) for folder in clip],
                "codec": Codec(vae),
                "schedule": Schedule.from_config(
                    {**self.scheduler.config, "_class_name": type(self.scheduler).__name__}
                ),
            }
            if unet is not None:
                self.backbone = fresh_unet(unet, **settings)
            else:
                self.backbone = fresh_mmdit(transformer or {}, **settings)
        self.backbone.denoiser.requires_grad_(True)
        self.objective, self.dropout, self.smallest = objective, dropout, smallest

    def loss(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        """The denoising loss of one batch of clean captioned images."""
        if batch.hq_BCHW is None:
            raise ValueError("a prior learns from clean images; this data source gave none")
        captions = self.dropout(batch.caption, batch, slot="semantic")
        with torch.no_grad():
            hq_BCHW, originals = shrink_and_enlarge(batch.hq_BCHW, batch.seed, smallest=self.smallest)
            height, width = hq_BCHW.shape[-2:]
            z0_BCHW = self.backbone.codec.encode(hq_BCHW)
            cond = self.backbone.embed(captions, (height, width), originals=originals)
        loss = self.objective(
            z0_BCHW,
            seeds=batch.seed,
            schedule=self.backbone.schedule,
            predict=lambda z_BCHW, t_B: self.backbone(z_BCHW, t_B, cond),
        )
        return {"loss": loss}

    def export(self, folder: Path) -> None:
        """Write a diffusers pipeline folder in half precision."""
        save_pipeline(self.backbone, self.scheduler, folder)


def shrink_and_enlarge(
    image_BCHW: Tensor, seeds: Sequence[int], *, smallest: float
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Shrink and enlarge half of the images by random factors.

    Args:
        image_BCHW: images in [0, 1].
        seeds: one per image.
        smallest: the smallest factor, in (0, 1]; 1 changes no image.

    Returns:
        The images at their size, and the (height, width) to which each was shrunk.
    """
    height, width = image_BCHW.shape[-2:]
    factor_B = (smallest + (1 - smallest) * 2 * uniform(seeds, "original size")).clamp(max=1.0)
    originals = [(max(1, round(height * factor)), max(1, round(width * factor))) for factor in factor_B.tolist()]
    resized = [
        resize(resize(image, height=h, width=w, mode="bicubic_antialias"), height=height, width=width, mode="bicubic")
        for image, (h, w) in zip(image_BCHW, originals, strict=True)
    ]
    return torch.stack(resized).clamp(0, 1), originals
