"""What all restoration methods share: a backbone, an adaptor, prompts, an objective and a sampler, wired together.

Training: z0 = E(hq); loss(z0, predict). Restoring: the loop from noise to a latent, decoded. A method file adds what is
its own by overriding `hint` (what the adaptor may look at). Images are (B, 3, H, W) in [0, 1] of any size; they are
padded to the backbone's multiple and cut back.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from restore_lab.adaptors.decoder import CodecDecoder
from restore_lab.adaptors.lq_encoder import CodecEncoder
from restore_lab.backbones.loading import DTYPES
from restore_lab.methods.training import Optimisation, TrainingModule
from restore_lab.methods.weights import fingerprint_of, put_weights, read_weights, write_weights
from restore_lab.types import Batch, Cond, Hint, Prompt, Tap

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from restore_lab.adaptors.control import ControlAdaptor
    from restore_lab.adaptors.decoder import ConsistencyDecoder, DegradationAwareDecoder
    from restore_lab.adaptors.lq_encoder import RobustEncoder
    from restore_lab.backbones.unet import UNetBackbone
    from restore_lab.objectives.denoising import Denoising
    from restore_lab.prompts.sources import PromptSources
    from restore_lab.samplers.guidance import Branch
    from restore_lab.samplers.level import Level
    from restore_lab.samplers.loop import Sampler
    from restore_lab.types import Edit

    Decoder = CodecDecoder | DegradationAwareDecoder | ConsistencyDecoder

log = logging.getLogger(__name__)
LQ_ENCODER = "lq_encoder."  # before the names of the LQ encoder's tensors
DECODER = "decoder."  # and of the decoder's


class RestorationModule(TrainingModule):
    """A frozen prior that an adaptor turns into a restorer.

    Args:
        backbone: the prior.
        adaptor: builds the adaptor from the backbone.
        prompts: the prompt slots.
        objective: the training loss.
        sampler: the sampling loop.
        optimisation: learning rate and schedule.
        lq_encoder: builds what turns the LQ into a latent; null for the codec's own encoder. Frozen here.
        decoder: builds what turns the restored latent into an image; null for the codec's own. Frozen here.
        weights_dtype: what the finished weights are written in: float32, float16 or bfloat16.
    """

    def __init__(
        self,
        *,
        backbone: UNetBackbone,
        adaptor: Callable[[UNetBackbone], ControlAdaptor],
        prompts: PromptSources,
        objective: Denoising,
        sampler: Sampler,
        optimisation: Optimisation,
        lq_encoder: Callable[[UNetBackbone], CodecEncoder | RobustEncoder] | None = None,
        decoder: Callable[[UNetBackbone], Decoder] | None = None,
        weights_dtype: str = "float32",
    ) -> None:
        super().__init__(optimisation=optimisation)
        if weights_dtype not in DTYPES:
            raise ValueError(f"weights_dtype={weights_dtype!r} is not known; one of {', '.join(DTYPES)}")
        self.weights_dtype = DTYPES[weights_dtype]
        self.backbone = backbone
        self.adaptor = adaptor(backbone)
        self.learned = [name for name, p in self.adaptor.named_parameters() if p.requires_grad]
        self.lq_encoder = (lq_encoder or CodecEncoder)(backbone).requires_grad_(False)
        with torch.random.fork_rng(devices=[]):  # what a decoder draws must not change how the rest starts
            torch.manual_seed(torch.initial_seed() + 1)
            self.decoder = (decoder or CodecDecoder)(backbone).requires_grad_(False)
        self.decoder_known = False  # whether it was trained
        self.prompts, self.objective, self.sampler = prompts, objective, sampler
        self.visual = prompts.visual  # a module, so that it moves to the device with the rest

    def hint(self, lq_BCHW: Tensor, prompt: Prompt) -> Hint:
        """What the adaptor may look at: the LQ and, if it reads it, the LQ's latent; a method may say more."""
        latent_BCHW = self.lq_encoder(lq_BCHW, self.backbone.codec) if self.adaptor.lq_latent else None
        return Hint(lq_BCHW=lq_BCHW, lq_latent_BCHW=latent_BCHW)

    def cond(self, prompt: Prompt, size: tuple[int, int]) -> Cond:
        """What the prior is told: the semantic text; a method may tell it something else."""
        return self.backbone.embed(prompt.semantic, size)

    def predict(self, z_BCHW: Tensor, t_B: Tensor, branches: Sequence[Branch], *, strength: float = 1.0) -> Tensor:
        """The weighted sum of the branches' predictions; a trunk that reads no semantic text runs once for all.

        Args:
            z_BCHW: noisy latents.
            t_B: timesteps.
            branches: the guidance's.
            strength: how far the adaptor's edits go: 0 is the plain prior, 1 the edits as they are.
        """
        total, controls = None, None
        at = self.adaptor.fuse if strength == 1.0 else partway(self.adaptor.fuse, strength)
        for branch in branches:
            if controls is None or self.adaptor.text == "semantic":
                controls = self.adaptor.control(z_BCHW, t_B, branch.hint, branch.cond)
            out = self.backbone(z_BCHW, t_B, branch.cond, at=at, carry=controls)
            total = branch.weight * out if total is None else total + branch.weight * out
        if total is None:
            raise ValueError("guidance gave no branches")
        return total

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The denoising loss of one batch of pairs."""
        from restore_lab.samplers.guidance import Branch

        hq_BCHW, lq_BCHW = self.pair(batch)
        prompt = self.prompts(batch, training=True)
        with torch.no_grad():
            cond = self.cond(prompt, tuple(hq_BCHW.shape[-2:]))
            hint = self.hint(lq_BCHW, prompt)
        loss = self.denoising_loss(batch, (Branch(weight=1.0, cond=cond, hint=hint),))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def denoising_loss(self, batch: Batch, branches: Sequence[Branch]) -> Tensor:
        """The objective at the HQ's latents."""
        with torch.no_grad():
            z0_BCHW = self.backbone.codec.encode(self.pair(batch)[0])
        return self.objective(
            z0_BCHW,
            seeds=batch.seed,
            schedule=self.backbone.schedule,
            predict=lambda z_BCHW, t_B: self.predict(z_BCHW, t_B, branches),
        )

    def pair(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """HQ and LQ of a batch.

        Raises:
            ValueError: if one is missing.
        """
        if batch.hq_BCHW is None or batch.lq_BCHW is None:
            raise ValueError("training needs pairs; give a source with HQ images and a degradation, or data=paired")
        return batch.hq_BCHW, batch.lq_BCHW

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """PSNR of one sample and of the LQ, in dB."""
        if batch.hq_BCHW is None or batch.lq_BCHW is None:
            raise ValueError("validation needs pairs; give eval_data with HQ images and an eval_degradation")
        for name, image_BCHW in (("restored", self.restore(batch)), ("lq", batch.lq_BCHW)):
            mse_B = (image_BCHW - batch.hq_BCHW).square().mean(dim=(1, 2, 3))
            self.log(f"val/psnr_{name}", (-10 * mse_B.log10()).mean(), prog_bar=True, batch_size=len(batch))

    @torch.no_grad()
    def restore(self, batch: Batch) -> Tensor:
        """Restored images, the size of the LQ, in [0, 1]."""
        lq_BCHW = batch.lq_BCHW
        if lq_BCHW is None:
            raise ValueError("there is no LQ to restore")
        prompt = self.prompts(batch, training=False)
        padded_BCHW = pad_to_multiple(lq_BCHW, self.backbone.multiple)
        size = tuple(padded_BCHW.shape[-2:])
        cond = self.cond(prompt, size)
        # Without words, or with what was seen in their place, there is nothing to guide towards.
        wordless = prompt.negative == prompt.semantic or prompt.visual_BLD is not None
        null = cond if wordless else self.backbone.embed(prompt.negative, size)
        hint = self.hint(padded_BCHW, prompt)

        def guided(z_BCHW: Tensor, t_B: Tensor, level: Level) -> Tensor:
            branches = self.sampler.guidance.branches(cond=cond, null=null, hint=hint, level=level)
            return self.predict(z_BCHW, t_B, branches, strength=self.sampler.strength(level))

        codec, own = self.backbone.codec, isinstance(self.lq_encoder, CodecEncoder)
        lq_latent_BCHW = hint.lq_latent_BCHW
        if lq_latent_BCHW is None:
            lq_latent_BCHW = self.lq_encoder(padded_BCHW, codec)
        preview_BCHW = padded_BCHW if own else codec.decode(lq_latent_BCHW)  # the LQ without its degradation
        centre_BCHW = codec.encode(preview_BCHW) if self.sampler.fidelity.recode else lq_latent_BCHW
        latent_BCHW = self.sampler(
            guided, lq_latent_BCHW, centre_BCHW=centre_BCHW, seeds=batch.seed, schedule=self.backbone.schedule
        )
        restored_BCHW = self.sampler.colour(self.decoder(latent_BCHW, hint, codec).clamp(0, 1), preview_BCHW)
        height, width = lq_BCHW.shape[-2:]
        return restored_BCHW[..., :height, :width].clamp(0, 1)

    @torch.no_grad()
    def reconstruct(self, lq_BCHW: Tensor) -> Tensor:
        """What the codec's decoder makes of the LQ's latent, in [0, 1]: with a robust encoder, a first restoration."""
        height, width = lq_BCHW.shape[-2:]
        codec, padded_BCHW = self.backbone.codec, pad_to_multiple(lq_BCHW, self.backbone.multiple)
        return codec.decode(self.lq_encoder(padded_BCHW, codec))[..., :height, :width]

    def load_weights(self, file: Path) -> None:
        """Load the method's weights, all of them and nothing else; says so if they were trained on another prior.

        A decoder is the last stage's: without one in the file it stays the codec's, and one that is not asked for is
        left alone.

        Raises:
            ValueError: if the file is missing or does not fit.
        """
        found = read_weights(file, base=fingerprint_of(self.backbone.unet))
        wanted, decoder = self.adaptor_state(), self.decoder_state()
        held = {name for name in found if name.startswith(DECODER)}
        if decoder and held:
            wanted |= decoder
            self.decoder_known = True
        else:
            found = {name: value for name, value in found.items() if name not in held}
        if decoder and not held:
            log.info("%s: no decoder in it (stage decoder makes one); it is the codec's", file)
        put_weights(found, wanted, file=file)

    def own_parts(self) -> dict[str, torch.nn.Module]:
        """What a method has besides the adaptor, by name, for `describe`."""
        return {}

    def adaptor_state(self) -> dict[str, Tensor]:
        """The method's own tensors by name: the adaptor's trainable ones and, if it has one, its LQ encoder's."""
        own = {name: self.adaptor.get_parameter(name).data for name in self.learned}
        return own | {f"{LQ_ENCODER}{name}": p.data for name, p in self.lq_encoder.named_parameters()}

    def decoder_state(self) -> dict[str, Tensor]:
        """The decoder's tensors by name, if it is the method's own."""
        return {f"{DECODER}{name}": p.data for name, p in self.decoder.named_parameters() if self.decoder.stored}

    def export(self, folder: Path, *, decoder: bool = False) -> None:
        """The method's weights as safetensors, with the prior's fingerprint in the header.

        Args:
            folder: where to.
            decoder: with the decoder's; a trained one that was loaded is written in any case.
        """
        own = self.adaptor_state() | (self.decoder_state() if decoder or self.decoder_known else {})
        write_weights(own, folder, dtype=self.weights_dtype, base=fingerprint_of(self.backbone.unet))


def partway(edit: Edit, strength: float) -> Edit:
    """The edit gone only a part of the way: h + strength (edit(h) - h), SUPIR's control scale for any fusion."""

    def at(tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: Any) -> tuple[Tensor, Any]:
        edited_BCHW, carry = edit(tap, h_BCHW, temb_BD, carry)
        return (h_BCHW if edited_BCHW is h_BCHW else h_BCHW + strength * (edited_BCHW - h_BCHW)), carry

    return at


def pad_to_multiple(image_BCHW: Tensor, multiple: int) -> Tensor:
    """The image with its lower and right edges repeated outwards until both sides are multiples."""
    height, width = image_BCHW.shape[-2:]
    pad = (0, -width % multiple, 0, -height % multiple)
    return torch.nn.functional.pad(image_BCHW, pad, mode="replicate")
