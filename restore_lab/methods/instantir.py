"""InstantIR (Huang et al. 2024): restoration with a preview in every step, and the training of its first two stages.

3.2 DCP (Eqs. 3 and 4): adaptors/stream.py, DINOv2 in prompts/visual.py, stage dcp in `DcpTraining` below. 3.2
previewer (Eq. 5): LoRA in adaptors/lora.py, stage previewer in `PreviewerTraining` below, loss in
objectives/consistency.py; its previews in sampling: methods/reference.py. 3.2 aggregator (Eq. 6): adaptors/trunk,
adaptors/fusion/sft.py. 3.3 AdaRes (Eq. 7, Algorithm 1): samplers/fidelity/adares.py. conf/method/instantir.yaml selects
the parts, conf/method/instantir/stages.yaml the stages.

A step of the previewer's training evaluates the prior in three roles: the teacher without LoRA, guided by text and DCP;
the student and its target with LoRA and without text. LoRA is switched on and off in between; gradient checkpointing
restores the switch of the forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from restore_lab.methods.conditioning import image_size
from restore_lab.methods.module import RestorationModule
from restore_lab.methods.reference import preview
from restore_lab.methods.trainable import Trainable
from restore_lab.samplers.guidance import Branch

if TYPE_CHECKING:
    from pathlib import Path

    from restore_lab.objectives.consistency import Distillation
    from restore_lab.prompts.dropout import Dropout
    from restore_lab.types import Batch


class InstantIR(RestorationModule):
    """An aggregator that reads the LQ latent and a preview of the result, and DCP in the prior.

    The loss trains the aggregator, the last of the three stages.
    """


class PartTraining(Trainable):
    """The base class of stages that train some parts of a method's adaptor.

    Args:
        restorer: the whole method.
        trains: parts of its adaptor that are trained.
        known: parts of its adaptor that are exported: those of this stage and of earlier ones.

    Raises:
        ValueError: for a part that the adaptor does not have.
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
        """Load an earlier stage's weights."""
        self.restorer.load_weights(file, partial=True)

    def load_tensors(self, tensors: Mapping[str, Tensor], *, file: Path, partial: bool = False) -> None:
        """Load an earlier stage's tensors."""
        self.restorer.load_tensors(tensors, file=file, partial=True)

    def export_state(self) -> dict[str, Tensor]:
        """The tensors of the parts in `known`."""
        return self.restorer.export_state(only=self.known)

    def export(self, folder: Path) -> None:
        """Write the parts in `known`."""
        self.restorer.export(folder, only=self.known)


class DcpTraining(PartTraining):
    """Trains DCP's resampler and visual stream with the denoising loss, without the aggregator. `stage=dcp`.

    Args:
        dropout: dropout of prompts and images in this stage; null for the method's.
        restorer, trains, known: as for `PartTraining`.
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
        """The denoising loss of one batch of pairs, without the aggregator."""
        method = self.restorer
        batch, prompt = method.training_pairs(batch)
        hq_BCHW, _ = method.pair(batch)
        cond = method.conditioner.cond(prompt, image_size(hq_BCHW))
        loss = method.objective(  # Eq. 1
            method.backbone.codec.encode_cached(hq_BCHW),
            seeds=batch.seed,
            schedule=method.backbone.schedule,
            predict=lambda z_BCHW, t_B: method.backbone(z_BCHW, t_B, cond),
        )
        return {"loss": loss}


class PreviewerTraining(PartTraining):
    """Trains LoRA in the prior by consistency distillation (Eq. 5). `stage=previewer`.

    Args:
        objective: the distillation loss.
        restorer, trains, known: as for `PartTraining`.
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
        conditioner, size = method.conditioner, image_size(hq_BCHW)
        prompt = conditioner.prompts(batch, training=False)
        with torch.no_grad():
            z0_BCHW = method.backbone.codec.encode_cached(hq_BCHW)
            empty = method.backbone.embed(("",) * len(batch), size)
            cond, null = conditioner.cond(prompt, size), conditioner.stream(empty, prompt.visual_null_BLD)
            hint = conditioner.hint(lq_BCHW, prompt)

        def teacher(z_BCHW: Tensor, s_B: Tensor, w_B: Tensor) -> Tensor:
            """The guided prior, cond + w (cond - null) as in LCM, where w = 0 is no guidance."""
            branches = [Branch(weight=1.0, cond=c, hint=hint) for c in (cond, null)]
            cond_BCHW, null_BCHW = method.denoiser.predict(z_BCHW, s_B, branches, strength=0.0)
            return cond_BCHW + w_B.to(cond_BCHW.dtype)[:, None, None, None] * (cond_BCHW - null_BCHW)

        loss = self.objective(  # Eq. 5
            z0_BCHW,
            seeds=batch.seed,
            schedule=method.backbone.schedule,
            student=lambda z_BCHW, t_B: preview(method.backbone, method.adaptor, z_BCHW, t_B, empty, hint.visual_BND),
            teacher=teacher,
        )
        return {"loss": loss}
