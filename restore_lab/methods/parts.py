"""Pieces that the methods are put together from: their weights by name, edits gone part of the way, padding.

A method's file holds the tensors that it learned, and a frozen part's that an earlier stage learned; later stages have
more parts than earlier ones, so a training may start from a file that lacks some.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from restore_lab.methods.training import TrainingModule
from restore_lab.methods.weights import fingerprint_of, is_lora, plain, put_weights, read_weights, write_weights
from restore_lab.types import Edit, Tap

if TYPE_CHECKING:
    from pathlib import Path

    from restore_lab.backbones.base import Backbone

log = logging.getLogger(__name__)
LQ_ENCODER = "lq_encoder."  # before the names of the LQ encoder's tensors
DECODER = "decoder."  # and of the decoder's


class OwnWeights(TrainingModule):
    """The weights of a method: its adaptor's, its LQ encoder's, its decoder's.

    Attributes:
        learned: of the adaptor's tensors those that are the method's: names in the file to names in the adaptor.
        decoder_known: whether the decoder was trained.
    """

    backbone: Backbone
    adaptor: nn.Module
    lq_encoder: nn.Module
    decoder: Any
    weights_dtype: torch.dtype

    def own(self, *, frozen: Sequence[str]) -> None:
        """Take what the adaptor would train now as the method's, and freeze some of its parts.

        Raises:
            ValueError: for a part that the adaptor does not have.
        """
        # LoRA's tensors also stand in the layers that they change; the file names them once, in `lora`.
        self.learned = {
            plain(name): name
            for name, p in self.adaptor.named_parameters(remove_duplicate=False)
            if p.requires_grad and not is_lora(name)
        }
        self.decoder_known = False
        for name in frozen:
            part = getattr(self.adaptor, name, None)
            if not isinstance(part, nn.Module):
                names = ", ".join(name for name, _ in self.adaptor.named_children())
                raise ValueError(f"module.frozen: this adaptor has no {name!r}; it has {names}")
            part.requires_grad_(False)

    def adaptor_state(self) -> dict[str, Tensor]:
        """The method's own tensors by name: the adaptor's and, if it has one, its LQ encoder's."""
        own = {name: self.adaptor.get_parameter(place).data for name, place in self.learned.items()}
        return own | {f"{LQ_ENCODER}{name}": p.data for name, p in self.lq_encoder.named_parameters()}

    def decoder_state(self) -> dict[str, Tensor]:
        """The decoder's tensors by name, if it is the method's own."""
        return {f"{DECODER}{name}": p.data for name, p in self.decoder.named_parameters() if self.decoder.stored}

    def load_weights(self, file: Path, *, partial: bool = False) -> None:
        """Load the method's weights, all of them and nothing else; says so if they were trained on another prior.

        A decoder is the last stage's: without one in the file it stays the codec's, and one that is not asked for is
        left alone.

        Args:
            file: what `export` wrote.
            partial: an earlier stage's file may lack whole parts, which stay as they are.

        Raises:
            ValueError: if the file is missing or does not fit.
        """
        meta = next(self.backbone.denoiser.parameters()).is_meta  # then it only compares
        found = read_weights(file, base=None if meta else fingerprint_of(self.backbone.denoiser), meta=meta)
        wanted, decoder = self.adaptor_state(), self.decoder_state()
        held = {name for name in found if name.startswith(DECODER)}
        if decoder and held:
            wanted |= decoder
            self.decoder_known = True
        else:
            found = {name: value for name, value in found.items() if name not in held}
        if decoder and not held and not meta:
            log.info("%s: no decoder in it (stage decoder makes one); it is as it starts", file)
        if partial:
            parts = {part_of(name) for name in found}
            wanted = {name: value for name, value in wanted.items() if part_of(name) in parts}
        put_weights(found, wanted, file=file)

    def export(self, folder: Path, *, decoder: bool = False, only: Sequence[str] | None = None) -> None:
        """The method's weights as safetensors, with the prior's fingerprint in the header.

        Args:
            folder: where to.
            decoder: with the decoder's; a trained one that was loaded is written in any case.
            only: parts of the adaptor that are written; None for all.
        """
        own = self.adaptor_state()
        if only is not None:
            own = {name: value for name, value in own.items() if part_of(name) in only}
        own |= self.decoder_state() if decoder or self.decoder_known else {}
        meta = next(self.backbone.denoiser.parameters()).is_meta
        base = None if meta else fingerprint_of(self.backbone.denoiser)
        write_weights(own, folder, dtype=self.weights_dtype, base=base)


def part_of(name: str) -> str:
    """The part of a method that a tensor belongs to: the first word of its name."""
    return name.partition(".")[0]


def partway(edit: Edit, strength: Tensor | float) -> Edit:
    """The edit gone only a part of the way: h + strength (edit(h) - h), SUPIR's control scale for any fusion.

    Args:
        edit: the edit.
        strength: a number, or one an image.
    """

    def at(tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: Any) -> tuple[Tensor, Any]:
        edited_BCHW, carry = edit(tap, h_BCHW, temb_BD, carry)
        if edited_BCHW is h_BCHW:
            return h_BCHW, carry
        part = strength if not isinstance(strength, Tensor) else strength.to(h_BCHW)[:, None, None, None]
        return h_BCHW + part * (edited_BCHW - h_BCHW), carry

    return at


def pad_to_multiple(image_BCHW: Tensor, multiple: int) -> Tensor:
    """The image with its lower and right edges repeated outwards until both sides are multiples."""
    height, width = image_BCHW.shape[-2:]
    pad = (0, -width % multiple, 0, -height % multiple)
    if not any(pad):
        return image_BCHW
    return torch.nn.functional.pad(image_BCHW, pad, mode="replicate")


def mixed(backbone: Backbone) -> AbstractContextManager[Any]:
    """Autocast to the type of a prior in float16 or bfloat16, where a float32 adaptor meets it; nothing for others."""
    weight = next(backbone.denoiser.parameters())
    if weight.dtype.itemsize >= torch.float32.itemsize or weight.is_meta:
        return nullcontext()
    return torch.autocast(weight.device.type, dtype=weight.dtype)
