"""Diff-Restorer (Zhang et al. 2024), and the training of its degradation-aware decoder after the adaptor.

III-B visual prompts (Eq. 2): CLIP in prompts/visual.py, the processor in adaptors/prompt_processor.py, both used by
`VisualPromptConditioner` below. III-C control (Eqs. 3 and 4): adaptors/injection.py, adaptors/fusion. III-D decoder
(Eq. 5): decoders/degradation_aware.py. III-E training: Eqs. 6 and 7 in `DiffRestorer`, Eq. 8 in `DecoderTraining`, its
terms in objectives/decoder.py. IV-A degradations: degradation/diff_restorer.py. conf/method/diff_restorer.yaml selects
the parts, conf/method/diff_restorer/stages.yaml the decoder's stage.

The semantic token P_S replaces the text in the prior and in the trunk; the degradation embedding P_D modulates the
control encoder. The loss is L = L_diff + lambda_1 L_deg + lambda_2 L_rec (Eq. 7): the denoising loss, the classifier's
cross-entropy over the degradations in each image's recipe, and the squared error of the control decoder's image to the
clean one (Eq. 4). Sampling has no classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from restore_lab.adaptors.injection import ControlEncoder
from restore_lab.config.kinds import CountOrZero, DType, Positive
from restore_lab.degradation.vocabulary import labels
from restore_lab.methods.conditioning import Conditioner, Conditions, image_size
from restore_lab.methods.module import RestorationModule
from restore_lab.methods.trainable import Trainable, mean_psnr, sum_losses
from restore_lab.objectives.decoder import PatchDiscriminator, Perceptual, discriminator_loss, generator_loss
from restore_lab.types import Cond, Hint

if TYPE_CHECKING:
    from pathlib import Path

    from restore_lab.adaptors.control import Adaptor, ControlAdaptor
    from restore_lab.adaptors.injection import ControlDecoder
    from restore_lab.adaptors.lq_encoder import CodecEncoder, RobustEncoder
    from restore_lab.adaptors.prompt_processor import PromptFeatures, PromptProcessor
    from restore_lab.backbones.base import Backbone
    from restore_lab.methods.pipeline import Decoder
    from restore_lab.methods.reference import Reference
    from restore_lab.objectives.denoising import Denoising
    from restore_lab.prompts.slots import PromptSources
    from restore_lab.samplers.base import Sampler
    from restore_lab.types import Batch, Prompt


class VisualPromptConditioner(Conditioner):
    """Gives the prior the semantic token instead of text tokens, and the adaptor the degradation embedding.

    Args:
        processor: computes both from CLIP's embedding of the LQ.
        degradation_prompt: false sets P_D to zeros for control and decoder.
        backbone, adaptor, prompts, lq_encoder: as for `Conditioner`.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        adaptor: Adaptor,
        prompts: PromptSources,
        lq_encoder: CodecEncoder | RobustEncoder,
        processor: PromptProcessor,
        degradation_prompt: bool,
    ) -> None:
        super().__init__(backbone=backbone, adaptor=adaptor, prompts=prompts, lq_encoder=lq_encoder)
        self.processor, self.degradation_prompt = processor, degradation_prompt

    def prompt_features(self, prompt: Prompt) -> PromptFeatures:
        """P_S and P_D of each LQ.

        Raises:
            ValueError: if the prompt has no CLIP embedding of the LQ.
        """
        if prompt.visual_BLD is None:
            raise ValueError("the prompt holds no visual embedding; set prompt/visual=clip")
        return self.processor(prompt.visual_BLD[:, 0])  # Eq. 2

    def cond(self, prompt: Prompt, size: tuple[int, int], *, features: PromptFeatures | None = None) -> Cond:
        """The condition of the text with its tokens replaced by the semantic token."""
        features = self.prompt_features(prompt) if features is None else features
        return replace(super().cond(prompt, size), tokens_BLD=features.tokens_BLD)

    def null(self, prompt: Prompt, size: tuple[int, int], cond: Cond) -> Cond:
        """The condition itself: there is no classifier-free guidance."""
        return cond

    def prompt_hint(self, lq_BCHW: Tensor, prompt: Prompt, size: tuple[int, int]) -> Hint:
        """The hint with the degradation embedding."""
        degradation_BD = self.prompt_features(prompt).degradation_BD
        if not self.degradation_prompt:
            degradation_BD = torch.zeros_like(degradation_BD)
        return replace(super().prompt_hint(lq_BCHW, prompt, size), degradation_BD=degradation_BD)


class DiffRestorer(RestorationModule):
    """The base method with the visual prompt processor and two more losses.

    It has no `lq_targets`: its prior reads no text that could describe the degradation.

    Args:
        processor: builds the prompt processor from the widths of embedding and tokens.
        control_decoder: builds the control decoder from the codec's compression.
        degradation_weight: lambda_1; 0 trains no classifier (Table IV).
        reconstruction_weight: lambda_2; 0 trains no control decoder (Tables III and IV).
        degradation_prompt: false sets P_D to zeros for control and decoder (Table II, "w/o P_D").
        backbone, adaptor, prompts, objective, sampler, lq_encoder, decoder, weights_dtype, reference,
            frozen: as for `RestorationModule`.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        adaptor: Callable[[Backbone], ControlAdaptor],
        prompts: PromptSources,
        objective: Denoising,
        sampler: Sampler,
        processor: Callable[..., PromptProcessor],
        control_decoder: Callable[..., ControlDecoder],
        degradation_weight: float,
        reconstruction_weight: float,
        degradation_prompt: bool = True,
        lq_encoder: Callable[[Backbone], CodecEncoder | RobustEncoder] | None = None,
        decoder: Callable[[Backbone], Decoder] | None = None,
        weights_dtype: DType = "float32",
        reference: Reference | None = None,
        frozen: Sequence[str] = (),
    ) -> None:
        super().__init__(
            backbone=backbone,
            adaptor=adaptor,
            prompts=prompts,
            objective=objective,
            sampler=sampler,
            lq_encoder=lq_encoder,
            decoder=decoder,
            weights_dtype=weights_dtype,
            reference=reference,
            frozen=frozen,
        )
        if self.visual is None:
            raise ValueError("Diff-Restorer looks at the LQ through CLIP; set prompt/visual=clip")
        self.processor = processor(inputs=self.visual.width, tokens=self.backbone.token_width)
        self.weights = (float(degradation_weight), float(reconstruction_weight))
        self.conditioner = VisualPromptConditioner(
            backbone=self.backbone,
            adaptor=self.adaptor,
            prompts=prompts,
            lq_encoder=self.lq_encoder,
            processor=self.processor,
            degradation_prompt=degradation_prompt,
        )
        self.control_decoder: ControlDecoder | None = None
        if reconstruction_weight:
            self.control_decoder = control_decoder(compression=self.backbone.codec.compression)
        if not degradation_weight:
            self.processor.classifier.requires_grad_(False)

    def extra_parts(self) -> dict[str, nn.Module]:
        """The processor's branches and classifier, and the control decoder if it is trained."""
        parts = {f"processor.{name}": part for name, part in self.processor.named_children()}
        return parts | ({"control_decoder": self.control_decoder} if self.control_decoder is not None else {})

    def adaptor_state(self) -> dict[str, Tensor]:
        """The base method's tensors and the processor's; the control decoder is used only in training."""
        return super().adaptor_state() | {f"processor.{name}": p.data for name, p in self.processor.named_parameters()}

    def loss(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        """L of one batch of pairs, and its terms."""
        hq_BCHW, lq_BCHW = self.pair(batch)
        prompt = self.conditioner.prompts(batch, training=True)
        features, hint = self.conditioner.prompt_features(prompt), self.conditioner.hint(lq_BCHW, prompt)
        cond = self.conditioner.cond(prompt, image_size(hq_BCHW), features=features)
        losses = {"diffusion": self.denoising_loss(batch, Conditions(cond=cond, null=cond, hint=hint))}  # Eq. 6
        degradation, reconstruction = self.weights
        if degradation:
            losses["degradation"] = degradation * degradation_loss(features.logits_BN, batch)
        if reconstruction and self.control_decoder is not None:
            encoder = self.adaptor.get_submodule("hint")
            assert isinstance(encoder, ControlEncoder)
            rebuilt_BCHW = self.control_decoder(encoder.features(hint))
            losses["reconstruction"] = reconstruction * F.mse_loss(rebuilt_BCHW.float(), hq_BCHW.float())  # Eq. 4
        return sum_losses(losses)  # Eq. 7


class DecoderTraining(Trainable):
    """Trains a method's decoder to reconstruct the clean images. `stage=decoder` (section III-E, Eq. 8).

    The latents are those of the clean images; the LQ features and the degradation embedding come from the trained
    method, which is frozen. Decoder and discriminator are updated in the same step. The weights of both stages are
    exported together.

    Args:
        restorer: the method; only its decoder is trained.
        discriminator: a patch discriminator; null trains without L_adv.
        perceptual: VGG-19's distance; null trains without L_per.
        perceptual_weight, adversarial_weight: lambda_3 and lambda_4.
        adversarial_from: first step with L_adv; the discriminator is trained from the start.
        discriminator_lr: learning rate of the discriminator.
        discriminator_betas: betas of its AdamW.
    """

    def __init__(
        self,
        *,
        restorer: RestorationModule,
        discriminator: PatchDiscriminator | None,
        perceptual: Perceptual | None,
        perceptual_weight: float,
        adversarial_weight: float,
        adversarial_from: CountOrZero,
        discriminator_lr: Positive,
        discriminator_betas: Sequence[float],
    ) -> None:
        super().__init__()
        if not restorer.decoder.in_checkpoint:
            raise ValueError("this decoder has nothing to train; choose decoder=degradation_aware")
        self.restorer = restorer.requires_grad_(False)
        self.restorer.decoder.requires_grad_(True)
        self.discriminator, self.perceptual = discriminator, perceptual
        self.weights = (perceptual_weight, adversarial_weight)
        self.adversarial_from = adversarial_from
        self.discriminator_settings = {"lr": discriminator_lr, "betas": tuple(discriminator_betas)}

    def load_weights(self, file: Path, *, partial: bool = False) -> None:
        """Load the trained method's weights."""
        self.restorer.load_weights(file, partial=partial)

    def load_tensors(self, tensors: Mapping[str, Tensor], *, file: Path, partial: bool = False) -> None:
        """Load the trained method's tensors."""
        self.restorer.load_tensors(tensors, file=file, partial=partial)

    def decode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The clean images' latents decoded, and the clean images."""
        hq_BCHW, lq_BCHW = self.restorer.pair(batch)
        codec = self.restorer.backbone.codec
        with torch.no_grad():
            conditioner = self.restorer.conditioner
            hint = conditioner.hint(lq_BCHW, conditioner.prompts(batch, training=False))
            z0_BCHW = codec.encode_cached(hq_BCHW)
        return self.restorer.decoder(z0_BCHW, hint, codec), hq_BCHW

    def loss(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        """L_dec plus the discriminator's loss, and the terms."""
        decoded_BCHW, hq_BCHW = self.decode(batch)
        losses = {"reconstruction": F.mse_loss(decoded_BCHW.float(), hq_BCHW.float())}
        perceptual, adversarial = self.weights
        if self.perceptual is not None and perceptual:
            losses["perceptual"] = perceptual * self.perceptual(decoded_BCHW, hq_BCHW)
        if self.discriminator is not None and adversarial:
            losses["discriminator"] = discriminator_loss(self.discriminator, decoded_BCHW, hq_BCHW)
            if step >= self.adversarial_from:
                losses["adversarial"] = adversarial * generator_loss(self.discriminator, decoded_BCHW)
        return sum_losses(losses)  # Eq. 8, plus the discriminator's loss

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """PSNR in dB of the clean latents decoded by this decoder and by the codec's."""
        decoded_BCHW, hq_BCHW = self.decode(batch)
        codec = self.restorer.backbone.codec
        codec_BCHW = codec.decode(codec.encode(hq_BCHW))
        return mean_psnr({"decoder": decoded_BCHW.clamp(0, 1), "codec": codec_BCHW}, hq_BCHW)

    def param_groups(self) -> list[dict[str, Any]]:
        """The decoder's parameters, and the discriminator's with a separate learning rate and betas."""
        groups: list[dict[str, Any]] = [{"params": list(self.restorer.decoder.parameters())}]
        if self.discriminator is not None:
            groups.append({"params": list(self.discriminator.parameters()), **self.discriminator_settings})
        return groups

    def export(self, folder: Path) -> None:
        """Write the method's weights with the decoder's."""
        self.restorer.export(folder, decoder=True)


def degradation_loss(logits_BN: Tensor, batch: Batch) -> Tensor:
    """L_deg: cross-entropy with the degradations in each image's recipe, several of which have equal probabilities.

    Raises:
        ValueError: for images without a recipe, or with none of the eight degradations.
    """
    if any(recipe is None for recipe in batch.recipe):
        raise ValueError("the classifier learns from recipes, and these pairs have none; set degradation_weight=0")
    labels_BN = torch.tensor([labels(recipe) for recipe in batch.recipe if recipe], dtype=logits_BN.dtype)
    if not labels_BN.any(dim=1).all():
        raise ValueError("a recipe holds none of the eight degradations; set degradation=diff_restorer")
    target_BN = (labels_BN / labels_BN.sum(dim=1, keepdim=True)).to(logits_BN.device)
    return F.cross_entropy(logits_BN.float(), target_BN.float())
