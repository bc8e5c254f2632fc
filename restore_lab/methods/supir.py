"""SUPIR (Yu et al., CVPR 2024), and the training of its degradation-robust encoder before the adaptor.

3.1 encoder: adaptors/lq_encoder.py, trained by `EncoderTraining` below with the loss L_E in objectives/encoder.py. 3.1
adaptor and ZeroSFT: adaptors/trunk, adaptors/fusion/zero_sft.py. 3.2 text, negative samples and guidance:
prompts/semantic.py, prepare/negatives.py, samplers/guidance.py. 3.3 restoration-guided sampling (Algorithm 1):
samplers/edm.py, samplers/fidelity/restoration_guided.py. The paper numbers no equations. conf/method/supir.yaml selects
the parts, conf/method/supir/stages.yaml the encoder's stage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from restore_lab.methods.module import RestorationModule
from restore_lab.methods.trainable import Trainable

if TYPE_CHECKING:
    from pathlib import Path

    from restore_lab.adaptors.lq_encoder import RobustEncoder
    from restore_lab.backbones.base import Backbone
    from restore_lab.objectives.encoder import EncoderLoss
    from restore_lab.types import Batch


class SUPIR(RestorationModule):
    """A control trunk that reads the robust encoder's LQ latent, with ZeroSFT connectors into SDXL."""


class EncoderTraining(Trainable):
    """Trains the robust encoder with the frozen codec. `method=supir stage=encoder` (section 3.1).

    Besides the loss it logs "luminance", the mean of the reconstruction over the mean of the original: with the paper's
    loss, reconstructions can become dark without an increase of the loss.

    Args:
        backbone: the prior, of which only the codec is used.
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
        """The loss of one batch of pairs, and the luminance."""
        if batch.hq_BCHW is None or batch.lq_BCHW is None:
            raise ValueError("training needs pairs; give a source with HQ images and a degradation, or data=paired")
        loss, restored_BCHW = self.objective(  # SUPIR, section 3.1, L_E
            batch.lq_BCHW, batch.hq_BCHW, encode=lambda x_BCHW: self.lq_encoder(x_BCHW, self.codec), codec=self.codec
        )
        return {"loss": loss, "luminance": (restored_BCHW.mean() / batch.hq_BCHW.mean()).detach()}

    def export(self, folder: Path) -> None:
        """Write the encoder's weights."""
        self.lq_encoder.save(folder)
