"""Trains a degradation-aware decoder after the adaptor (Diff-Restorer, section III-E, Eq. 8). `stage=decoder`.

The latents are the clean images' own; the LQ's features and its degradation embedding come from the finished method,
which stays as it is. Decoder and discriminator learn in the same step. Weights of both stages are written together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from restore_lab.methods.trainable import Trainable, mean_psnr, with_sum
from restore_lab.objectives.decoder import PatchDiscriminator, Perceptual, deceived, judged

if TYPE_CHECKING:
    from pathlib import Path

    from restore_lab.methods.module import RestorationModule
    from restore_lab.types import Batch


class DecoderTraining(Trainable):
    """A method's decoder against the clean images.

    Args:
        restorer: the method; its decoder is trained, and nothing else of it.
        discriminator: of patches; null trains without L_adv.
        perceptual: VGG-19's distance; null trains without L_per.
        perceptual_weight, adversarial_weight: lambda_3 and lambda_4.
        adversarial_from: step from which the decoder hears the discriminator, which learns from the start.
        discriminator_lr: learning rate of the discriminator.
        discriminator_betas: of its AdamW.
    """

    def __init__(
        self,
        *,
        restorer: RestorationModule,
        discriminator: PatchDiscriminator | None,
        perceptual: Perceptual | None,
        perceptual_weight: float,
        adversarial_weight: float,
        adversarial_from: int,
        discriminator_lr: float,
        discriminator_betas: Sequence[float],
    ) -> None:
        super().__init__()
        if not restorer.decoder.stored:
            raise ValueError("this decoder has nothing to train; choose decoder=degradation_aware")
        self.restorer = restorer.requires_grad_(False)
        self.restorer.decoder.requires_grad_(True)
        self.discriminator, self.perceptual = discriminator, perceptual
        self.weights = (perceptual_weight, adversarial_weight)
        self.adversarial_from = adversarial_from
        self.discriminator_settings = {"lr": discriminator_lr, "betas": tuple(discriminator_betas)}

    def load_weights(self, file: Path, *, partial: bool = False) -> None:
        """The finished method's."""
        self.restorer.load_weights(file, partial=partial)

    def decode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the decoder makes of the clean images' latents, and the clean images."""
        hq_BCHW, lq_BCHW = self.restorer.pair(batch)
        codec = self.restorer.backbone.codec
        with torch.no_grad():
            conditioner = self.restorer.conditioner
            hint = conditioner.hint(lq_BCHW, conditioner.prompts(batch, training=False))
            z0_BCHW = codec.remembered(hq_BCHW)
        return self.restorer.decoder(z0_BCHW, hint, codec), hq_BCHW

    def loss(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        """L_dec, and with it the discriminator's own loss."""
        made_BCHW, hq_BCHW = self.decode(batch)
        losses = {"reconstruction": F.mse_loss(made_BCHW.float(), hq_BCHW.float())}
        perceptual, deceive = self.weights
        if self.perceptual is not None and perceptual:
            losses["perceptual"] = perceptual * self.perceptual(made_BCHW, hq_BCHW)
        if self.discriminator is not None and deceive:
            losses["discriminator"] = judged(self.discriminator, made_BCHW, hq_BCHW)
            if step >= self.adversarial_from:
                losses["adversarial"] = deceive * deceived(self.discriminator, made_BCHW)
        return with_sum(losses)

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """PSNR of the clean latents decoded, by this decoder and by the codec's own, in dB."""
        made_BCHW, hq_BCHW = self.decode(batch)
        codec = self.restorer.backbone.codec
        plain_BCHW = codec.decode(codec.encode(hq_BCHW))
        return mean_psnr({"decoder": made_BCHW.clamp(0, 1), "codec": plain_BCHW}, hq_BCHW)

    def groups(self) -> list[dict[str, Any]]:
        """The decoder's parameters and, with its own learning rate and betas, the discriminator's."""
        groups: list[dict[str, Any]] = [{"params": list(self.restorer.decoder.parameters())}]
        if self.discriminator is not None:
            groups.append({"params": list(self.discriminator.parameters()), **self.discriminator_settings})
        return groups

    def export(self, folder: Path) -> None:
        """The method's weights, the decoder's among them."""
        self.restorer.export(folder, decoder=True)
