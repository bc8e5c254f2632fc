"""Trains the degradation-robust encoder (SUPIR, section 3.1), before the adaptor. `method=supir stage=encoder`.

Besides the loss it logs the mean of the reconstruction over the mean of the original (`train/luminance`): the printed
loss can drift to dark images without its loss saying so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from restore_lab.methods.trainable import Trainable

if TYPE_CHECKING:
    from pathlib import Path

    from restore_lab.adaptors.lq_encoder import RobustEncoder
    from restore_lab.backbones.base import Backbone
    from restore_lab.objectives.encoder import EncoderLoss
    from restore_lab.types import Batch


class EncoderTraining(Trainable):
    """The robust encoder against the frozen codec.

    Args:
        backbone: the prior, for its codec alone.
        lq_encoder: builds the encoder from the backbone.
        objective: the loss.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        lq_encoder: Callable[[Backbone], RobustEncoder],
        objective: EncoderLoss,
    ) -> None:
        super().__init__()
        self.codec = backbone.codec
        self.lq_encoder, self.objective = lq_encoder(backbone), objective
        if not self.trainable():
            raise ValueError("this encoder has nothing to train; choose lq_encoder=robust")

    def loss(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        """The loss of one batch of pairs."""
        if batch.hq_BCHW is None or batch.lq_BCHW is None:
            raise ValueError("training needs pairs; give a source with HQ images and a degradation, or data=paired")
        loss, restored_BCHW = self.objective(
            batch.lq_BCHW, batch.hq_BCHW, encode=lambda x_BCHW: self.lq_encoder(x_BCHW, self.codec), codec=self.codec
        )
        return {"loss": loss, "luminance": (restored_BCHW.mean() / batch.hq_BCHW.mean()).detach()}

    def export(self, folder: Path) -> None:
        """The encoder's weights."""
        self.lq_encoder.save(folder)
