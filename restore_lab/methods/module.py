"""What all restoration methods share: a backbone, an adaptor, prompts, an objective and a sampler, wired together.

Training: z0 = E(hq); objective(z0, denoiser). Restoring: the sampler from noise to a latent by the same denoiser,
decoded (pipeline.py). Most methods are this module with other parts (conf/method/*.yaml); one whose prior or adaptor
reads something else has a conditioner of its own. Images are (B, 3, H, W) in [0, 1] of any size; they are padded to the
backbone's multiple and cut back.

A method's file holds the tensors that it learned, and a frozen part's that an earlier stage learned; later stages have
more parts than earlier ones, so a training may start from a file that lacks some.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor, nn

from restore_lab.adaptors.lq_encoder import CodecEncoder
from restore_lab.backbones.loading.load import DTYPES
from restore_lab.decoders.codec import CodecDecoder
from restore_lab.methods.conditioning import Conditioner, Conditions
from restore_lab.methods.denoiser import Denoiser
from restore_lab.methods.pipeline import pad_to_multiple, restore
from restore_lab.methods.reference import Reference
from restore_lab.methods.trainable import Trainable, mean_psnr
from restore_lab.methods.weights import (
    DECODER,
    LQ_ENCODER,
    copy_weights,
    fingerprint_of,
    is_lora_tensor,
    part_name,
    read_weights,
    strip_base_layer,
    write_weights,
)
from restore_lab.samplers.fidelity.base import Steer
from restore_lab.types import Batch, Prompt

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from restore_lab.adaptors.control import Adaptor
    from restore_lab.adaptors.lq_encoder import RobustEncoder
    from restore_lab.backbones.base import Backbone
    from restore_lab.decoders.consistency import ConsistencyDecoder
    from restore_lab.decoders.degradation_aware import DegradationAwareDecoder
    from restore_lab.objectives.denoising import Denoising
    from restore_lab.prompts.slots import PromptSources
    from restore_lab.samplers.loop import Sampler

    Decoder = CodecDecoder | DegradationAwareDecoder | ConsistencyDecoder

log = logging.getLogger(__name__)
StageName = Literal["words", "codec", "prior", "none"]


class Stages(Protocol):
    """Moves groups of a method's parts on and off the device."""

    device: torch.device

    def __call__(self, name: StageName) -> None: ...


class RestorationModule(Trainable):
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
        reference: what an adaptor with a reference reads next to the LQ; null for the LQ itself.
        frozen: parts of the adaptor that are not trained here, though they are the method's ("stream", "lora").
        lq_targets: makes some LQs their own target in training (DRA); null for none.

    Attributes:
        conditioner: from a batch to what prior and adaptor read.
        denoiser: prior and adaptor at z_t.
        learned_names: of the adaptor's tensors those that are the method's: names in the file to names in the adaptor.
        has_trained_decoder: whether the decoder was trained.
    """

    stages: Stages | None = None  # which parts are on the device; None where all stay on it

    def __init__(
        self,
        *,
        backbone: Backbone,
        adaptor: Callable[..., Adaptor],
        prompts: PromptSources,
        objective: Denoising,
        sampler: Sampler,
        lq_encoder: Callable[[Backbone], CodecEncoder | RobustEncoder] | None = None,
        decoder: Callable[[Backbone], Decoder] | None = None,
        weights_dtype: str = "float32",
        reference: Reference | None = None,
        frozen: Sequence[str] = (),
        lq_targets: Callable[[Batch, Prompt], tuple[Batch, Prompt]] | None = None,
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
        self._collect_learned(frozen=frozen)
        self.objective, self.sampler, self.lq_targets = objective, sampler, lq_targets
        self.visual = prompts.visual  # a module, so that it moves to the device with the rest
        reference = reference or Reference(kind="lq")
        self.denoiser = Denoiser(self.backbone, self.adaptor, reference=reference)
        self.conditioner = Conditioner(
            backbone=self.backbone,
            adaptor=self.adaptor,
            prompts=prompts,
            lq_encoder=self.lq_encoder,
            reads_hq=reference.kind == "hq",
        )

    @property
    def run_device(self) -> torch.device:
        """Where images and latents belong."""
        return self.device if self.stages is None else self.stages.device

    def stage(self, name: StageName) -> None:
        """From here on this group of parts is needed on the device."""
        if self.stages is not None:
            self.stages(name)

    def training_pairs(self, batch: Batch) -> tuple[Batch, Prompt]:
        """The batch and its words as training sees them: with dropout, and some LQs as their own target."""
        prompt = self.conditioner.prompts(batch, training=True)
        return (batch, prompt) if self.lq_targets is None else self.lq_targets(batch, prompt)

    def loss(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        """The denoising loss of one batch of pairs."""
        batch, prompt = self.training_pairs(batch)
        self.pair(batch)
        return {"loss": self.denoising_loss(batch, self.conditioner(batch, prompt, guided=False))}

    def denoising_loss(self, batch: Batch, conditions: Conditions) -> Tensor:
        """The objective at the HQ's latents."""
        z0_BCHW = self.backbone.codec.encode_cached(self.pair(batch)[0])

        def predict(z_BCHW: Tensor, t_B: Tensor) -> Tensor:
            steer = Steer(blend=self.denoiser.reference.draw_blend(batch.seed))
            return self.denoiser(z_BCHW, t_B, conditions, seeds=batch.seed, steer=steer).out_BCHW

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
        return restore(self, batch)

    @torch.no_grad()
    def reconstruct(self, lq_BCHW: Tensor) -> Tensor:
        """What the codec's decoder makes of the LQ's latent, in [0, 1]: with a robust encoder, a first restoration."""
        height, width = lq_BCHW.shape[-2:]
        self.stage("codec")
        codec, padded_BCHW = self.backbone.codec, pad_to_multiple(lq_BCHW, self.backbone.multiple)
        return codec.decode(self.lq_encoder(padded_BCHW, codec))[..., :height, :width]

    def extra_parts(self) -> dict[str, torch.nn.Module]:
        """What a method has besides the adaptor, by name, for `describe`."""
        return {}

    def _collect_learned(self, *, frozen: Sequence[str]) -> None:
        """Take what the adaptor would train now as the method's, and freeze some of its parts.

        Raises:
            ValueError: for a part that the adaptor does not have.
        """
        # LoRA's tensors also stand in the layers that they change; the file names them once, in `lora`.
        self.learned_names = {
            strip_base_layer(name): name
            for name, p in self.adaptor.named_parameters(remove_duplicate=False)
            if p.requires_grad and not is_lora_tensor(name)
        }
        self.has_trained_decoder = False
        for name in frozen:
            part = getattr(self.adaptor, name, None)
            if not isinstance(part, nn.Module):
                names = ", ".join(name for name, _ in self.adaptor.named_children())
                raise ValueError(f"module.frozen: this adaptor has no {name!r}; it has {names}")
            part.requires_grad_(False)

    def adaptor_state(self) -> dict[str, Tensor]:
        """The method's own tensors by name: the adaptor's and, if it has one, its LQ encoder's."""
        own = {name: self.adaptor.get_parameter(place).data for name, place in self.learned_names.items()}
        return own | {f"{LQ_ENCODER}{name}": p.data for name, p in self.lq_encoder.named_parameters()}

    def decoder_state(self) -> dict[str, Tensor]:
        """The decoder's tensors by name, if it is the method's own."""
        return {f"{DECODER}{name}": p.data for name, p in self.decoder.named_parameters() if self.decoder.in_checkpoint}

    def load_weights(self, file: Path, *, partial: bool = False) -> None:
        """Load the method's weights, all of them and nothing else; logs it if they were trained on another prior.

        On the meta device names and shapes are compared, and nothing is read.

        Args:
            file: what `export` wrote.
            partial: an earlier stage's file may lack whole parts, which stay as they are.

        Raises:
            ValueError: if the file is missing or does not fit.
        """
        meta = next(self.backbone.denoiser.parameters()).is_meta
        found = read_weights(file, base=None if meta else fingerprint_of(self.backbone.denoiser), meta=meta)
        self.load_tensors(found, file=file, partial=partial)

    def load_tensors(self, found: Mapping[str, Tensor], *, file: Path, partial: bool = False) -> None:
        """Copy a file's tensors into the method's.

        A decoder is the last stage's: without one in the file it stays the codec's, and one that this method lacks is
        left alone.

        Args:
            found: tensors by name.
            file, partial: as in `load_weights`.

        Raises:
            ValueError: if they do not fit.
        """
        meta = next(self.backbone.denoiser.parameters()).is_meta
        wanted, decoder = self.adaptor_state(), self.decoder_state()
        held = {name for name in found if name.startswith(DECODER)}
        if decoder and held:
            wanted |= decoder
            self.has_trained_decoder = True
        else:
            found = {name: value for name, value in found.items() if name not in held}
        if decoder and not held and not meta:
            log.info("%s: no decoder in it (stage decoder makes one); it is as it starts", file)
        if partial:
            parts = {part_name(name) for name in found}
            wanted = {name: value for name, value in wanted.items() if part_name(name) in parts}
        copy_weights(found, wanted, file=file)

    def export_state(self, *, decoder: bool = False, only: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The tensors that `export` writes, by name.

        Args:
            decoder: with the decoder's; a trained one that was loaded is written in any case.
            only: parts of the adaptor that are written; None for all.
        """
        own = self.adaptor_state()
        if only is not None:
            own = {name: value for name, value in own.items() if part_name(name) in only}
        return own | (self.decoder_state() if decoder or self.has_trained_decoder else {})

    def export(self, folder: Path, *, decoder: bool = False, only: Sequence[str] | None = None) -> None:
        """Write the weights as safetensors into an existing folder, with the prior's fingerprint in the header.

        Args:
            folder: where to.
            decoder, only: as in `export_state`.
        """
        base = fingerprint_of(self.backbone.denoiser)
        write_weights(self.export_state(decoder=decoder, only=only), folder, dtype=self.weights_dtype, base=base)
