"""The training of a shipped latent diffusion prior: its denoiser from nothing, on captioned scenes.

The codec and the text encoders are those of finished folders and stay frozen; one caption in ten is dropped, so that
the prior can be guided. The loss is the denoising loss in the schedule's own prediction (tiny_sd: velocity at zero
terminal SNR; tiny_sd3: flow matching). An SDXL also reads the size that an image had before it was brought to the
training size (Podell et al., section 2.2). Selected by `experiment=priors/tiny_sd|tiny_sdxl|tiny_sd3`, stage `unet` or
`transformer`.
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
    from restore_lab.prompts.slots import Dropout
    from restore_lab.types import Batch


class PriorPretraining(Trainable):
    """Trains the denoiser of a prior and writes the whole diffusers folder.

    Args:
        codec: a folder with a trained `AutoencoderKL` (stage `codec`).
        clip: CLIPModel folders, whose text towers become the prior's text encoders: one for an SD, two for an SDXL or
            an SD3.
        scheduler: a diffusers scheduler config; with a transformer a FlowMatchEulerDiscreteScheduler's.
        objective: the denoising loss.
        dropout: of the captions.
        unet: config of a UNet2DConditionModel, or
        transformer: config of an SD3Transformer2DModel; channels in and out and the conditions' widths are filled in.
        smallest: half of the images are shrunk to a share of their sides between this and 1 and enlarged again; an SDXL
            reads the sides in between as the original size.
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
        from diffusers import AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler

        wanted = "two (SD3)" if transformer is not None else "one folder (SD) or two (SDXL)"
        if isinstance(clip, str) or len(clip) not in (1, 2) or (transformer is not None and len(clip) != 2):
            raise ValueError(f"module.clip={clip!r}: give a list of {wanted}")
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
            hq_BCHW, originals = shrunk(batch.hq_BCHW, batch.seed, smallest=self.smallest)
            z0_BCHW = self.backbone.codec.encode(hq_BCHW)
            cond = self.backbone.embed(captions, tuple(hq_BCHW.shape[-2:]), originals=originals)
        loss = self.objective(
            z0_BCHW,
            seeds=batch.seed,
            schedule=self.backbone.schedule,
            predict=lambda z_BCHW, t_B: self.backbone(z_BCHW, t_B, cond),
        )
        return {"loss": loss}

    def export(self, folder: Path) -> None:
        """A diffusers pipeline's folder in half precision."""
        save_pipeline(self.backbone, self.scheduler, folder)


def shrunk(image_BCHW: Tensor, seeds: Sequence[int], *, smallest: float) -> tuple[Tensor, list[tuple[int, int]]]:
    """Half of the images shrunk and enlarged again, by their own seeds, and the (height, width) that each went through.

    Args:
        image_BCHW: images in [0, 1].
        seeds: one per image.
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
