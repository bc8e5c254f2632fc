"""InstantIR (Huang et al. 2024): a previewer in every step, and the training of its first two stages.

3.2 DCP: adaptors/visual_stream.py, DINOv2 in prompts/visual.py, stage dcp in `DcpTraining` below. 3.2 previewer, Eq. 5:
LoRA in adaptors/lora.py, stage previewer in `PreviewerTraining` below, objectives/consistency.py; what it previews in a
step: methods/reference.py. 3.2 aggregator, Eq. 6: adaptors/trunk, adaptors/fusion/sft.py. 3.3 AdaRes:
samplers/fidelity/adares.py. conf/method/instantir.yaml chooses these parts, conf/stages/instantir.yaml the stages.

One step of the previewer's training holds three readings of one prior: the teacher, LoRA off, guided by words and what
DCP sees; the student and its target, LoRA on, without words. LoRA is switched in between, and gradient checkpointing
sees the switch as it stood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from restore_lab.methods.module import RestorationModule
from restore_lab.methods.reference import preview
from restore_lab.methods.trainable import Trainable
from restore_lab.samplers.guidance import Branch

if TYPE_CHECKING:
    from pathlib import Path

    from restore_lab.objectives.consistency import Distillation
    from restore_lab.prompts.slots import Dropout
    from restore_lab.types import Batch


class InstantIR(RestorationModule):
    """An aggregator that reads the LQ's latent and a preview of the result, and DCP in the prior. Its loss trains the
    aggregator."""


class PartTraining(Trainable):
    """A stage that trains some parts of a method's adaptor and writes those that are known when it ends.

    Args:
        restorer: the whole method.
        trains: parts of its adaptor.
        known: parts of its adaptor that are written: these and earlier stages'.

    Raises:
        ValueError: for a part that the adaptor lacks.
    """

    def __init__(
        self,
        *,
        restorer: RestorationModule,
        trains: Sequence[str],
        known: Sequence[str],
    ) -> None:
        super().__init__()
        self.restorer, self.known = restorer.requires_grad_(False), list(known)
        for name in trains:
            part = getattr(restorer.adaptor, name, None)
            if part is None:
                raise ValueError(f"this stage trains the adaptor's {name}, and it has none; use adaptor=instantir")
            part.requires_grad_(True)

    def load_weights(self, file: Path, *, partial: bool = False) -> None:
        """An earlier stage's."""
        self.restorer.load_weights(file, partial=True)

    def load_tensors(self, found: Mapping[str, Tensor], *, file: Path, partial: bool = False) -> None:
        """An earlier stage's."""
        self.restorer.load_tensors(found, file=file, partial=True)

    def export_state(self) -> dict[str, Tensor]:
        """The parts that are known now."""
        return self.restorer.export_state(only=self.known)

    def export(self, folder: Path) -> None:
        """The parts that are known now."""
        self.restorer.export(folder, only=self.known)


class DcpTraining(PartTraining):
    """DCP's resampler and visual stream by the denoising loss, on the frozen prior without the aggregator. `stage=dcp`.

    Args:
        dropout: of words and images in this stage; null for the method's own.
        restorer, trains, known: as for every stage.
    """

    def __init__(
        self,
        *,
        restorer: RestorationModule,
        trains: Sequence[str],
        known: Sequence[str],
        dropout: Dropout | None = None,
    ) -> None:
        super().__init__(restorer=restorer, trains=trains, known=known)
        if dropout is not None:
            restorer.conditioner.prompts.dropout = dropout

    def loss(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        """The denoising loss of one batch of pairs, the aggregator left out."""
        method = self.restorer
        batch, prompt = method.training_pairs(batch)
        hq_BCHW, _ = method.pair(batch)
        cond = method.conditioner.cond(prompt, (hq_BCHW.shape[-2], hq_BCHW.shape[-1]))
        loss = method.objective(
            method.backbone.codec.encode_cached(hq_BCHW),
            seeds=batch.seed,
            schedule=method.backbone.schedule,
            predict=lambda z_BCHW, t_B: method.backbone(z_BCHW, t_B, cond),
        )
        return {"loss": loss}


class PreviewerTraining(PartTraining):
    """LoRA in the prior by consistency distillation (Eq. 5). `stage=previewer`.

    Args:
        objective: Eq. 5.
        restorer, trains, known: as for every stage.
    """

    def __init__(
        self,
        *,
        restorer: RestorationModule,
        trains: Sequence[str],
        known: Sequence[str],
        objective: Distillation,
    ) -> None:
        super().__init__(restorer=restorer, trains=trains, known=known)
        self.objective = objective

    def loss(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        """The distillation loss of one batch of pairs."""
        method = self.restorer
        hq_BCHW, lq_BCHW = method.pair(batch)
        conditioner, size = method.conditioner, (hq_BCHW.shape[-2], hq_BCHW.shape[-1])
        prompt = conditioner.prompts(batch, training=False)
        with torch.no_grad():
            z0_BCHW = method.backbone.codec.encode_cached(hq_BCHW)
            empty = method.backbone.embed(("",) * len(batch), size)
            cond, null = conditioner.cond(prompt, size), conditioner.stream(empty, prompt.visual_null_BLD)
            hint = conditioner.hint(lq_BCHW, prompt)

        def teacher(z_BCHW: Tensor, s_B: Tensor, w_B: Tensor) -> Tensor:
            """cond + w (cond - null): LCM's form, in which w = 0 is no guidance."""
            branches = [Branch(weight=1.0, cond=c, hint=hint) for c in (cond, null)]
            said, plain = method.denoiser.predict(z_BCHW, s_B, branches, strength=0.0)
            return said + w_B.to(said.dtype)[:, None, None, None] * (said - plain)

        loss = self.objective(
            z0_BCHW,
            seeds=batch.seed,
            schedule=method.backbone.schedule,
            student=lambda z_BCHW, t_B: preview(method.backbone, method.adaptor, z_BCHW, t_B, empty, hint.visual_BND),
            teacher=teacher,
        )
        return {"loss": loss}
