"""What all restoration methods share: a backbone, an adaptor, prompts, an objective and a sampler, wired together.

Training: z0 = E(hq); loss(z0, predict). Restoring: the loop from noise to a latent, decoded. Most methods are this
module with other parts (conf/method/*.yaml); one that has something of its own overrides `cond` or `hint` (what prior
and adaptor may look at). Images are (B, 3, H, W) in [0, 1] of any size; they are padded to the backbone's multiple and
cut back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from restore_lab.adaptors.lq_encoder import CodecEncoder
from restore_lab.backbones.loading.load import DTYPES
from restore_lab.decoders.codec import CodecDecoder
from restore_lab.methods.branches import predictions
from restore_lab.methods.parts import OwnWeights, mean_psnr, pad_to_multiple
from restore_lab.methods.pipeline import restored
from restore_lab.methods.reference import Reference
from restore_lab.samplers.fidelity.base import Prediction, Steer
from restore_lab.samplers.guidance import Branch
from restore_lab.types import Batch, Cond, Hint, Prompt

if TYPE_CHECKING:
    from collections.abc import Callable

    from restore_lab.adaptors.control import Beside
    from restore_lab.adaptors.lq_encoder import RobustEncoder
    from restore_lab.backbones.base import Backbone
    from restore_lab.decoders.consistency import ConsistencyDecoder
    from restore_lab.decoders.degradation_aware import DegradationAwareDecoder
    from restore_lab.methods.lq_targets import LqTargets
    from restore_lab.objectives.denoising import Denoising
    from restore_lab.prompts.slots import PromptSources
    from restore_lab.samplers.level import Level
    from restore_lab.samplers.loop import Sampler
    from restore_lab.samplers.tiling import Tiles

    Decoder = CodecDecoder | DegradationAwareDecoder | ConsistencyDecoder

StageName = Literal["words", "codec", "prior", "none"]


class Stages(Protocol):
    """Moves groups of a method's parts on and off the device."""

    device: torch.device

    def __call__(self, name: StageName) -> None: ...


class RestorationModule(OwnWeights):
    """A frozen prior that an adaptor turns into a restorer.

    Args:
        backbone: the prior.
        adaptor: builds the adaptor from the backbone and the width of what an image encoder sees, 0 if none looks.
        prompts: the prompt slots.
        objective: the training loss.
        sampler: the sampling loop.
        lq_encoder, decoder: build what turns the LQ into a latent and the restored latent into an image; null for the
            codec's own. Frozen here.
        weights_dtype: what the finished weights are written in: float32, float16 or bfloat16.
        reference: what an adaptor with a reference is shown beside the LQ; null for the LQ itself.
        frozen: parts of the adaptor that are not trained here, though they are the method's ("stream", "lora").
        lq_targets: makes some LQs their own target in training (DRA); null for none.
    """

    batched = True  # whether the guidance branches of a step go through the model in one call
    stages: Stages | None = None  # which parts are on the device; None where all stay on it

    def __init__(
        self,
        *,
        backbone: Backbone,
        adaptor: Callable[..., Beside],
        prompts: PromptSources,
        objective: Denoising,
        sampler: Sampler,
        lq_encoder: Callable[[Backbone], CodecEncoder | RobustEncoder] | None = None,
        decoder: Callable[[Backbone], Decoder] | None = None,
        weights_dtype: str = "float32",
        reference: Reference | None = None,
        frozen: Sequence[str] = (),
        lq_targets: LqTargets | None = None,
    ) -> None:
        super().__init__()
        if weights_dtype not in DTYPES:
            raise ValueError(f"weights_dtype={weights_dtype!r} is not known; one of {', '.join(DTYPES)}")
        self.weights_dtype = DTYPES[weights_dtype]
        self.backbone = backbone
        # In float32 whatever the prior's type: a copy of its layers is to be trained.
        self.adaptor = adaptor(backbone, visual=0 if prompts.visual is None else prompts.visual.width).float()
        self.lq_encoder = (lq_encoder or CodecEncoder)(backbone).requires_grad_(False)
        with torch.random.fork_rng(devices=[]):  # what a decoder draws must not change how the rest starts
            torch.manual_seed(torch.initial_seed() + 1)
            self.decoder = (decoder or CodecDecoder)(backbone).requires_grad_(False)
        self.own(frozen=frozen)
        self.prompts, self.objective, self.sampler = prompts, objective, sampler
        self.visual = prompts.visual  # a module, so that it moves to the device with the rest
        self.reference, self.lq_targets = reference or Reference(kind="lq"), lq_targets

    @property
    def run_device(self) -> torch.device:
        """Where images and latents belong."""
        return self.device if self.stages is None else self.stages.device

    def stage(self, name: StageName) -> None:
        """From here on this group of parts is needed on the device."""
        if self.stages is not None:
            self.stages(name)

    def hint(self, lq_BCHW: Tensor, prompt: Prompt, *, hq_BCHW: Tensor | None = None) -> Hint:
        """What the adaptor may look at: the LQ, and of the rest what it reads; a method may say more in `told`.

        Args:
            lq_BCHW, prompt: degraded images, and the slots' words for them.
            hq_BCHW: the originals, where they are known (a reference may want them).
        """
        told = self.told(lq_BCHW, prompt, tuple(lq_BCHW.shape[-2:]))
        return replace(told, **self.latents(lq_BCHW, hq_BCHW=hq_BCHW))

    def told(self, lq_BCHW: Tensor, prompt: Prompt, size: tuple[int, int]) -> Hint:
        """The hint without latents: what words and image encoders say."""
        adaptor, backbone = self.adaptor, self.backbone
        instruction, empty = None, None
        if adaptor.text in ("instruction", "none"):
            texts = prompt.instruction if adaptor.text == "instruction" else ("",) * len(lq_BCHW)
            instruction = backbone.embed(texts, size).tokens_BLD
        if adaptor.reference:
            empty = backbone.embed(("",) * len(lq_BCHW), size)
        return Hint(
            lq_BCHW=lq_BCHW,
            instruction_BLD=instruction,
            visual_BND=prompt.visual_BLD,
            visual_null_BND=prompt.visual_null_BLD,
            empty=empty,
        )

    def latents(self, lq_BCHW: Tensor, *, hq_BCHW: Tensor | None) -> dict[str, Tensor | None]:
        """The hint's latents, of those that the adaptor reads."""
        adaptor, codec = self.adaptor, self.backbone.codec
        wants_hq = adaptor.reference and self.reference.kind == "hq"
        return {
            "lq_latent_BCHW": self.lq_encoder(lq_BCHW, codec) if adaptor.lq_latent else None,
            "hq_latent_BCHW": codec.encode(hq_BCHW) if wants_hq and hq_BCHW is not None else None,
        }

    def cond(self, prompt: Prompt, size: tuple[int, int]) -> Cond:
        """What the prior is told: the semantic text and, with a visual stream, what an image encoder sees."""
        return self.streamed(self.backbone.embed(prompt.semantic, size), prompt.visual_BLD)

    def null(self, prompt: Prompt, size: tuple[int, int], cond: Cond) -> Cond:
        """The other half of guidance; `cond` itself where there is nothing to guide towards."""
        same = prompt.negative == prompt.semantic
        if same and self.adaptor.stream is None:
            return cond
        return self.streamed(cond if same else self.backbone.embed(prompt.negative, size), prompt.visual_null_BLD)

    def streamed(self, cond: Cond, visual_BND: Tensor | None) -> Cond:
        """The condition with the visual stream's tokens, if there is a stream."""
        stream = self.adaptor.stream
        if stream is None or visual_BND is None:
            return cond
        return replace(cond, visual_BLD=stream(visual_BND), visual_BND=visual_BND)

    def predict(
        self, z_BCHW: Tensor, t_B: Tensor, branches: Sequence[Branch], *, strength: Tensor | float = 1.0
    ) -> Tensor:
        """The weighted sum of the branches' predictions; a trunk that reads the same in all runs once for all.

        Args:
            z_BCHW, t_B: noisy latents and their timesteps.
            branches: the guidance's.
            strength: how far the adaptor's edits go, a number or one an image: 0 is the plain prior, 1 the edits as
                they are.
        """
        if not branches:
            raise ValueError("guidance gave no branches")
        found = predictions(self, z_BCHW, t_B, branches, strength=strength)
        total_BCHW = branches[0].weight * found[0]
        for branch, out_BCHW in zip(branches[1:], found[1:], strict=True):
            total_BCHW = total_BCHW + branch.weight * out_BCHW
        return total_BCHW

    def referred(
        self,
        z_BCHW: Tensor,
        t_B: Tensor,
        cond: Cond,
        hint: Hint,
        *,
        seeds: Sequence[int],
        blend: Tensor | float = 0.0,
        lq: bool = False,
        tiles: Tiles | None = None,
    ) -> tuple[Hint, Tensor | None]:
        """The hint with the reference of this step, if the adaptor reads one, and that reference before blending.

        Args:
            z_BCHW, t_B, seeds: where the step stands, and one seed per image.
            cond, hint, tiles: the branch's, what the adaptor may look at, and those of a large latent.
            blend: the reference's way towards the LQ's latent (InstantIR, Algorithm 1, line 5).
            lq: the LQ's latent is the reference of this step, whatever it is in others.
        """
        if not self.adaptor.reference:
            return hint, None
        if lq:
            return replace(hint, reference_BCHW=hint.lq_latent_BCHW), hint.lq_latent_BCHW
        found_BCHW = self.reference(self, z_BCHW, t_B, cond, hint, seeds=seeds, tiles=tiles)
        blend_B = blend if isinstance(blend, Tensor) else torch.full((len(found_BCHW),), float(blend))
        blended_BCHW = found_BCHW + blend_B.to(found_BCHW)[:, None, None, None] * (hint.lq_latent_BCHW - found_BCHW)
        return replace(hint, reference_BCHW=blended_BCHW), found_BCHW

    def training_pairs(self, batch: Batch) -> tuple[Batch, Prompt]:
        """The batch and its words as training sees them: with dropout, and some LQs as their own target."""
        prompt = self.prompts(batch, training=True)
        return (batch, prompt) if self.lq_targets is None else self.lq_targets(batch, prompt)

    def loss(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        """The denoising loss of one batch of pairs."""
        batch, prompt = self.training_pairs(batch)
        hq_BCHW, lq_BCHW = self.pair(batch)
        cond = self.cond(prompt, tuple(hq_BCHW.shape[-2:]))
        hint = self.hint(lq_BCHW, prompt, hq_BCHW=hq_BCHW)
        return {"loss": self.denoising_loss(batch, cond, hint)}

    def denoising_loss(self, batch: Batch, cond: Cond, hint: Hint) -> Tensor:
        """The objective at the HQ's latents."""
        z0_BCHW = self.backbone.codec.remembered(self.pair(batch)[0])

        def predict(z_BCHW: Tensor, t_B: Tensor) -> Tensor:
            blend_B = self.reference.blends(batch.seed)
            shown, _ = self.referred(z_BCHW, t_B, cond, hint, seeds=batch.seed, blend=blend_B)
            return self.predict(z_BCHW, t_B, (Branch(weight=1.0, cond=cond, hint=shown),))

        return self.objective(z0_BCHW, seeds=batch.seed, schedule=self.backbone.schedule, predict=predict)

    def pair(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """HQ and LQ of a batch.

        Raises:
            ValueError: if one is missing.
        """
        if batch.hq_BCHW is None or batch.lq_BCHW is None:
            raise ValueError("training needs pairs; give a source with HQ images and a degradation, or data=paired")
        return batch.hq_BCHW, batch.lq_BCHW

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """PSNR of one sample and of the LQ, in dB, and the sample, "restored"."""
        if batch.hq_BCHW is None or batch.lq_BCHW is None:
            raise ValueError("validation needs pairs; give eval_data with HQ images and an eval_degradation")
        restored_BCHW = self.restore(batch)
        images = {"restored": restored_BCHW, "lq": batch.lq_BCHW}
        return {**mean_psnr(images, batch.hq_BCHW), "restored": restored_BCHW}

    @torch.no_grad()
    def restore(self, batch: Batch) -> Tensor:
        """Restored images, the size of the LQ, in [0, 1]; in tiles where the sampler has them and the LQ is large."""
        return restored(self, batch)

    def guided(
        self,
        z_BCHW: Tensor,
        t_B: Tensor,
        level: Level,
        steer: Steer,
        *,
        cond: Cond,
        null: Cond,
        hint: Hint,
        seeds: Sequence[int],
        tiles: Tiles | None = None,
    ) -> Prediction:
        """The guided model at one step of sampling: reference, branches, strength."""
        strength = self.sampler.strength(level) * steer.strength
        idle = isinstance(strength, float | int) and strength == 0.0  # then nobody reads the reference
        branches = self.sampler.guidance.branches(cond=cond, null=null, hint=hint, level=level)
        found: list[tuple[Hint, Tensor | None]] = [(hint, None)]
        if not idle or self.sampler.fidelity.watches:
            own = branches if self.reference.per_branch else branches[:1]
            steered = {"seeds": seeds, "blend": steer.blend, "lq": steer.lq_reference, "tiles": tiles}
            found = [self.referred(z_BCHW, t_B, branch.cond, hint, **steered) for branch in own]
        branches = [replace(b, hint=shown) for b, (shown, _) in zip(branches, cycle(found), strict=False)]
        if tiles is None:
            out_BCHW = self.predict(z_BCHW, t_B, branches, strength=strength)
        else:
            out_BCHW = tiles.over(
                lambda part: self.predict(
                    part.crop(z_BCHW), part.each(t_B), part.branches(branches), strength=part.each(strength)
                ),
                z_BCHW,
            )
        return Prediction(out_BCHW=out_BCHW, preview_BCHW=found[0][1])

    @torch.no_grad()
    def reconstruct(self, lq_BCHW: Tensor) -> Tensor:
        """What the codec's decoder makes of the LQ's latent, in [0, 1]: with a robust encoder, a first restoration."""
        height, width = lq_BCHW.shape[-2:]
        self.stage("codec")
        codec, padded_BCHW = self.backbone.codec, pad_to_multiple(lq_BCHW, self.backbone.multiple)
        return codec.decode(self.lq_encoder(padded_BCHW, codec))[..., :height, :width]

    def own_parts(self) -> dict[str, torch.nn.Module]:
        """What a method has besides the adaptor, by name, for `describe`."""
        return {}
