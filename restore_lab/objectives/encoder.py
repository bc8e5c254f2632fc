"""The loss of SUPIR's degradation-robust encoder E_dr (Yu et al. 2024, section 3.1), with D the frozen decoder.

The paper prints |D(E_dr(x_LQ)) - D(E_dr(x_GT))|^2, which a constant encoder minimises; reimplementations with this loss
report dark images. The default target is D(E(x_GT)), with E the frozen encoder; "image" is x_GT; "printed" is the
paper's, with stop gradient on the second term unless `both_halves`. Images are in [0, 1], reconstructions unclamped.
Selected by `stages.encoder.module.objective.target=codec|image|printed`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from restore_lab.config.validate import check_arguments

if TYPE_CHECKING:
    from restore_lab.backbones.codec.codec import Codec

Target = Literal["codec", "image", "printed"]


@check_arguments
class EncoderLoss:
    """Mean squared error between decoded images.

    Args:
        target: target of the LQ's reconstruction: "codec", "image" or "printed".
        both_halves: no stop gradient on the target "printed".
    """

    def __init__(self, *, target: Target, both_halves: bool) -> None:
        self.target, self.both_halves = target, both_halves

    def __call__(
        self, lq_BCHW: Tensor, hq_BCHW: Tensor, *, encode: Callable[[Tensor], Tensor], codec: Codec
    ) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and the reconstruction of the LQ, (B, 3, H, W), detached.

        Args:
            lq_BCHW, hq_BCHW: pairs of images in [0, 1].
            encode: the trained encoder E_dr.
            codec: the frozen codec.
        """
        restored_BCHW = codec.decode(encode(lq_BCHW), clamp=False)
        with torch.set_grad_enabled(self.target == "printed" and self.both_halves):
            if self.target == "codec":
                target_BCHW = codec.decode(codec.encode(hq_BCHW), clamp=False)
            elif self.target == "image":
                target_BCHW = hq_BCHW
            else:
                target_BCHW = codec.decode(encode(hq_BCHW), clamp=False)
        loss = F.mse_loss(restored_BCHW.float(), target_BCHW.float())  # SUPIR, section 3.1: L_E, the encoder's
        return loss, restored_BCHW.detach()
