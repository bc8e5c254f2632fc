"""The base of all restoration methods: a backbone, an adaptor, prompts, an objective and a sampler, wired together.

Training: z0 = E(hq), then objective(z0, denoiser). Restoring: the sampler goes from noise to a latent with the same
denoiser, and the latent is decoded (pipeline.py). Most methods are this module with other parts (conf/method/*.yaml); a
method with other inputs of prior or adaptor has a different conditioner. Images are (B, 3, H, W) in [0, 1] of any size;
they are padded to the backbone's multiple, and the result is cropped.

A method's weights file holds its trained tensors, also those of parts that an earlier stage trained and that are frozen
now. A later stage has more parts than an earlier one, so a training may start from a file without some of them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from restore_lab.adaptors.lq_encoder import CodecEncoder
from restore_lab.backbones.loading.load import DTYPES
from restore_lab.config.kinds import DType
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
    from restore_lab.methods.conditioning import StageName
    from restore_lab.methods.pipeline import Decoder
    from restore_lab.objectives.denoising import Denoising
    from restore_lab.prompts.slots import PromptSources
    from restore_lab.samplers.base import Sampler

log = logging.getLogger(__name__)


class Stages(Protocol):
    """Moves groups of a method's parts to and from the device."""

    device: torch.device

    def __call__(self, name: StageName) -> None: ...


class RestorationModule(Trainable):
    """A frozen prior with an adaptor for restoration.

    Args:
        backbone: the prior.
        adaptor: builds the adaptor from the backbone and the width of the image encoder's features, 0 for no encoder.
        prompts: the prompt slots.
        objective: the training loss.
        sampler: the sampling loop.
        lq_encoder, decoder: build the encoder of the LQ and the decoder of the restored latent, both frozen here; null
            for the codec's.
        weights_dtype: dtype of the exported weights: float32, float16 or bfloat16.
        reference: computes the reference that an adaptor may read next to the LQ; null for the LQ latent.
        frozen: parts of the adaptor that are exported but not trained here ("stream", "lora").
        lq_targets: replaces the targets of some images by their LQ in training (DRA); null for none.

    Attributes:
        conditioner: computes the inputs of prior and adaptor from a batch.
        denoiser: prior and adaptor at z_t.
        learned_names: the adaptor's tensors that are exported: name in the file to name in the adaptor.
        has_trained_decoder: whether trained weights of the decoder were loaded.
    """

    stages: Stages | None = None  # None keeps all parts on one device

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
        weights_dtype: DType = "float32",
        reference: Reference | None = None,
        frozen: Sequence[str] = (),
        lq_targets: Callable[[Batch, Prompt], tuple[Batch, Prompt]] | None = None,
    ) -> None:
        super().__init__()
        self.weights_dtype = DTYPES[weights_dtype]
        self.backbone = backbone
        # In float32 for a prior of any dtype, since copies of its layers are trained.
        self.adaptor = adaptor(backbone, visual=0 if prompts.visual is None else prompts.visual.width).float()
        self.lq_encoder = (lq_encoder or CodecEncoder)(backbone).requires_grad_(False)
        with torch.random.fork_rng(devices=[]):  # the decoder must not change the initialisation of other parts
            torch.manual_seed(torch.initial_seed() + 1)
            self.decoder = (decoder or CodecDecoder)(backbone).requires_grad_(False)
        self._collect_learned(frozen=frozen)
        self.objective, self.sampler, self.lq_targets = objective, sampler, lq_targets
        self.visual = prompts.visual  # as a submodule, which moves with the method to its device
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
        """The device of images and latents."""
        return self.device if self.stages is None else self.stages.device

    def stage(self, name: StageName) -> None:
        """Make a group of parts available on the device."""
        if self.stages is not None:
            self.stages(name)

    def training_pairs(self, batch: Batch) -> tuple[Batch, Prompt]:
        """The batch and its prompts for training: with dropout, and with LQ targets if the method has them."""
        prompt = self.conditioner.prompts(batch, training=True)
        return (batch, prompt) if self.lq_targets is None else self.lq_targets(batch, prompt)

    def loss(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        """The denoising loss of one batch of pairs (SPIRE, Eq. 1)."""
        batch, prompt = self.training_pairs(batch)
        self.pair(batch)
        return {"loss": self.denoising_loss(batch, self.conditioner(batch, prompt, guided=False))}

    def denoising_loss(self, batch: Batch, conditions: Conditions) -> Tensor:
        """The objective at the latents of the HQ."""
        z0_BCHW = self.backbone.codec.encode_cached(self.pair(batch)[0])

        def predict(z_BCHW: Tensor, t_B: Tensor) -> Tensor:
            steer = Steer(blend=self.denoiser.reference.draw_blend(batch.seed))
            return self.denoiser(z_BCHW, t_B, conditions, seeds=batch.seed, steer=steer).out_BCHW

        return self.objective(z0_BCHW, seeds=batch.seed, schedule=self.backbone.schedule, predict=predict)

    def pair(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """HQ and LQ of a batch.

        Raises:
            ValueError: if the batch lacks one of them.
        """
        if batch.hq_BCHW is None or batch.lq_BCHW is None:
            raise ValueError("training needs pairs; give a source with HQ images and a degradation, or data=paired")
        return batch.hq_BCHW, batch.lq_BCHW

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """PSNR in dB of one sample and of the LQ, and the sample as "restored"."""
        if batch.hq_BCHW is None or batch.lq_BCHW is None:
            raise ValueError("validation needs pairs; give eval_data with HQ images and an eval_degradation")
        restored_BCHW = self.restore(batch)
        images = {"restored": restored_BCHW, "lq": batch.lq_BCHW}
        return {**mean_psnr(images, batch.hq_BCHW), "restored": restored_BCHW}

    @torch.no_grad()
    def restore(self, batch: Batch) -> Tensor:
        """The restored images, of the size of the LQ, in [0, 1]; large ones in tiles, if the sampler has them."""
        return restore(self, batch)

    @torch.no_grad()
    def reconstruct(self, lq_BCHW: Tensor) -> Tensor:
        """The LQ latent decoded by the codec, in [0, 1]: with a robust encoder, the LQ without its degradation."""
        height, width = lq_BCHW.shape[-2:]
        self.stage("codec")
        codec, padded_BCHW = self.backbone.codec, pad_to_multiple(lq_BCHW, self.backbone.multiple)
        return codec.decode(self.lq_encoder(padded_BCHW, codec))[..., :height, :width]

    def extra_parts(self) -> dict[str, nn.Module]:
        """The method's parts besides the adaptor, by name, for `restore-lab describe`."""
        return {}

    def _collect_learned(self, *, frozen: Sequence[str]) -> None:
        """Collect the names of the adaptor's trainable tensors, and freeze some of its parts.

        Raises:
            ValueError: for a part that the adaptor does not have.
        """
        # LoRA's tensors are also parameters of the layers that they change; the file has them once, in `lora`.
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
        """The method's tensors by name: the adaptor's and those of an LQ encoder with parameters."""
        state = {name: self.adaptor.get_parameter(place).data for name, place in self.learned_names.items()}
        return state | {f"{LQ_ENCODER}{name}": p.data for name, p in self.lq_encoder.named_parameters()}

    def decoder_state(self) -> dict[str, Tensor]:
        """The decoder's tensors by name, if it is trained with the method."""
        return {f"{DECODER}{name}": p.data for name, p in self.decoder.named_parameters() if self.decoder.in_checkpoint}

    def load_weights(self, file: Path, *, partial: bool = False) -> None:
        """Load the method's weights; a warning is logged if they were trained on another prior.

        On the meta device only names and shapes are compared.

        Args:
            file: a file written by `export`.
            partial: allow an earlier stage's file without some of the parts, which keep their weights.

        Raises:
            ValueError: if the file does not exist, or its tensors are not exactly the method's.
        """
        meta = next(self.backbone.denoiser.parameters()).is_meta
        tensors = read_weights(file, base=None if meta else fingerprint_of(self.backbone.denoiser), meta=meta)
        self.load_tensors(tensors, file=file, partial=partial)

    def load_tensors(self, tensors: Mapping[str, Tensor], *, file: Path, partial: bool = False) -> None:
        """Copy tensors into the method's.

        The decoder is optional, since only the last stage trains it: without its tensors it keeps its initialisation,
        and tensors of a decoder that this method does not have are ignored.

        Args:
            tensors: tensors by name.
            file, partial: as in `load_weights`.

        Raises:
            ValueError: if the tensors do not fit.
        """
        meta = next(self.backbone.denoiser.parameters()).is_meta
        target, decoder = self.adaptor_state(), self.decoder_state()
        decoder_names = {name for name in tensors if name.startswith(DECODER)}
        if decoder and decoder_names:
            target |= decoder
            self.has_trained_decoder = True
        else:
            tensors = {name: value for name, value in tensors.items() if name not in decoder_names}
        if decoder and not decoder_names and not meta:
            log.info("%s: no decoder in it (stage decoder makes one); it is as it starts", file)
        if partial:
            parts = {part_name(name) for name in tensors}
            target = {name: value for name, value in target.items() if part_name(name) in parts}
        copy_weights(tensors, target, file=file)

    def export_state(self, *, decoder: bool = False, only: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The tensors that `export` writes, by name.

        Args:
            decoder: include the decoder's, which are always included if trained ones were loaded.
            only: parts of the adaptor to include; None for all.
        """
        state = self.adaptor_state()
        if only is not None:
            state = {name: value for name, value in state.items() if part_name(name) in only}
        return state | (self.decoder_state() if decoder or self.has_trained_decoder else {})

    def export(self, folder: Path, *, decoder: bool = False, only: Sequence[str] | None = None) -> None:
        """Write the weights as safetensors into an existing folder, with the prior's fingerprint in the header.

        Args:
            folder: the folder.
            decoder, only: as in `export_state`.
        """
        base = fingerprint_of(self.backbone.denoiser)
        write_weights(self.export_state(decoder=decoder, only=only), folder, dtype=self.weights_dtype, base=base)
