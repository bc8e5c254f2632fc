"""Diff-Restorer (Zhang et al. 2024), and the training of its degradation-aware decoder, after the adaptor.

III-B visual prompts: CLIP in prompts/visual.py, the processor in adaptors/prompt_processor.py, how both are read in
`VisualPromptConditioner` below. III-C control: adaptors/injection.py, adaptors/fusion. III-D decoder:
decoders/degradation_aware.py. III-E training: the losses of `DiffRestorer` and `DecoderTraining` below, Eq. 8's in
objectives/decoder.py. IV-A degradations: degradation/diff_restorer.py. conf/method/diff_restorer.yaml chooses these
parts, conf/stages/diff_restorer.yaml the decoder's stage.

The semantic token takes the place of the text in the prior and in the trunk; the degradation embedding modulates the
control encoder. Loss is L = L_diff + w_deg L_deg + w_rec L_rec: the denoising loss, the classifier's cross-entropy over
the kinds in each image's recipe, and the control decoder's squared error to the clean image (Eq. 4). There is no
guidance at test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from restore_lab.config.kinds import CountOrZero, DType, Positive
from restore_lab.degradation.vocabulary import labels
from restore_lab.methods.conditioning import Conditioner, Conditions
from restore_lab.methods.module import RestorationModule
from restore_lab.methods.trainable import Trainable, mean_psnr, with_sum
from restore_lab.objectives.decoder import PatchDiscriminator, Perceptual, discriminator_loss, generator_loss
from restore_lab.types import Cond, Hint

if TYPE_CHECKING:
    from pathlib import Path

    from restore_lab.adaptors.control import Adaptor, ControlAdaptor
    from restore_lab.adaptors.injection import ControlDecoder
    from restore_lab.adaptors.lq_encoder import CodecEncoder, RobustEncoder
    from restore_lab.adaptors.prompt_processor import PromptFeatures, PromptProcessor
    from restore_lab.backbones.base import Backbone
    from restore_lab.methods.module import Decoder
    from restore_lab.methods.reference import Reference
    from restore_lab.objectives.denoising import Denoising
    from restore_lab.prompts.slots import PromptSources
    from restore_lab.samplers.loop import Sampler
    from restore_lab.types import Batch, Prompt


class VisualPromptConditioner(Conditioner):
    """The prior reads the semantic token in the place of the text's, the adaptor the degradation embedding.

    Args:
        processor: makes both of what CLIP sees in the LQ.
        degradation_prompt: false gives control and decoder a P_D of zeros.
        backbone, adaptor, prompts, lq_encoder: as for every conditioner.
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

    def see(self, prompt: Prompt) -> PromptFeatures:
        """What the processor sees in each LQ.

        Raises:
            ValueError: without CLIP's embedding of the LQ.
        """
        if prompt.visual_BLD is None:
            raise ValueError("the prompt holds no visual embedding; set prompt/visual=clip")
        return self.processor(prompt.visual_BLD[:, 0])

    def cond(self, prompt: Prompt, size: tuple[int, int], *, seen: PromptFeatures | None = None) -> Cond:
        """The text's condition with the semantic token in the place of its tokens."""
        seen = self.see(prompt) if seen is None else seen
        return replace(super().cond(prompt, size), tokens_BLD=seen.tokens_BLD)

    def null(self, prompt: Prompt, size: tuple[int, int], cond: Cond) -> Cond:
        """The condition itself: without words there is nothing to guide towards."""
        return cond

    def say(self, lq_BCHW: Tensor, prompt: Prompt, size: tuple[int, int]) -> Hint:
        """The hint with the degradation embedding."""
        seen_BD = self.see(prompt).degradation_BD
        read_BD = seen_BD if self.degradation_prompt else torch.zeros_like(seen_BD)
        return replace(super().say(lq_BCHW, prompt, size), degradation_BD=read_BD)


class DiffRestorer(RestorationModule):
    """The base wiring with the visual prompt processor and two more losses.

    It takes no `lq_targets`: its prior reads no words that could say what is wrong.

    Args:
        processor: builds the prompt processor from the widths of embedding and tokens.
        control_decoder: builds the control decoder from the codec's compression.
        degradation_weight: w_deg; 0 trains no classifier (Table IV).
        reconstruction_weight: w_rec; 0 trains no control decoder (Tables III and IV).
        degradation_prompt: false gives control and decoder a P_D of zeros (Table II, "w/o P_D": "we set it null").
        backbone, adaptor, prompts, objective, sampler, lq_encoder, decoder, weights_dtype, reference,
            frozen: as for every method.
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
        self.control_decoder = None
        if reconstruction_weight:
            self.control_decoder = control_decoder(compression=self.backbone.codec.compression)
        if not degradation_weight:
            self.processor.classifier.requires_grad_(False)

    def own_parts(self) -> dict[str, nn.Module]:
        """The processor's branches and classifier, and the control decoder if it is trained."""
        parts = {f"processor.{name}": part for name, part in self.processor.named_children()}
        return parts | ({"control_decoder": self.control_decoder} if self.control_decoder is not None else {})

    def adaptor_state(self) -> dict[str, Tensor]:
        """The base's tensors and the processor's; the control decoder is for training alone."""
        return super().adaptor_state() | {f"processor.{name}": p.data for name, p in self.processor.named_parameters()}

    def loss(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        """L of one batch of pairs."""
        hq_BCHW, lq_BCHW = self.pair(batch)
        prompt = self.conditioner.prompts(batch, training=True)
        seen, hint = self.conditioner.see(prompt), self.conditioner.hint(lq_BCHW, prompt)
        cond = self.conditioner.cond(prompt, (hq_BCHW.shape[-2], hq_BCHW.shape[-1]), seen=seen)
        losses = {"diffusion": self.denoising_loss(batch, Conditions(cond=cond, null=cond, hint=hint))}
        degradation, reconstruction = self.weights
        if degradation:
            losses["degradation"] = degradation * kinds_loss(seen.logits_BN, batch)
        if reconstruction and isinstance(self.control_decoder, nn.Module):
            rebuilt_BCHW = self.control_decoder(self.adaptor.hint.features(hint))
            losses["reconstruction"] = reconstruction * F.mse_loss(rebuilt_BCHW.float(), hq_BCHW.float())
        return with_sum(losses)


class DecoderTraining(Trainable):
    """A method's decoder against the clean images. `stage=decoder` (section III-E, Eq. 8).

    The latents are the clean images' own; the LQ's features and its degradation embedding come from the finished
    method, which stays as it is. Decoder and discriminator learn in the same step. Weights of both stages are written
    together.

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
        """The finished method's."""
        self.restorer.load_weights(file, partial=partial)

    def take(self, found: Mapping[str, Tensor], *, file: Path, partial: bool = False) -> None:
        """The finished method's."""
        self.restorer.take(found, file=file, partial=partial)

    def decode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the decoder makes of the clean images' latents, and the clean images."""
        hq_BCHW, lq_BCHW = self.restorer.pair(batch)
        codec = self.restorer.backbone.codec
        with torch.no_grad():
            conditioner = self.restorer.conditioner
            hint = conditioner.hint(lq_BCHW, conditioner.prompts(batch, training=False))
            z0_BCHW = codec.encode_cached(hq_BCHW)
        return self.restorer.decoder(z0_BCHW, hint, codec), hq_BCHW

    def loss(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        """L_dec, and with it the discriminator's own loss."""
        made_BCHW, hq_BCHW = self.decode(batch)
        losses = {"reconstruction": F.mse_loss(made_BCHW.float(), hq_BCHW.float())}
        perceptual, deceive = self.weights
        if self.perceptual is not None and perceptual:
            losses["perceptual"] = perceptual * self.perceptual(made_BCHW, hq_BCHW)
        if self.discriminator is not None and deceive:
            losses["discriminator"] = discriminator_loss(self.discriminator, made_BCHW, hq_BCHW)
            if step >= self.adversarial_from:
                losses["adversarial"] = deceive * generator_loss(self.discriminator, made_BCHW)
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
        """The method's weights, with the decoder's."""
        self.restorer.export(folder, decoder=True)


def kinds_loss(logits_BN: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy against the kinds in each image's recipe, equal shares where there are several.

    Raises:
        ValueError: for images whose degradation is not known, or is none of the eight.
    """
    if any(recipe is None for recipe in batch.recipe):
        raise ValueError("the classifier learns from recipes, and these pairs have none; set degradation_weight=0")
    known = torch.tensor([labels(recipe) for recipe in batch.recipe if recipe], dtype=logits_BN.dtype)
    if not known.any(dim=1).all():
        raise ValueError("a recipe holds none of the eight degradations; set degradation=diff_restorer")
    target_BN = (known / known.sum(dim=1, keepdim=True)).to(logits_BN.device)
    return F.cross_entropy(logits_BN.float(), target_BN.float())
