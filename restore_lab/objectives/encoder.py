"""The loss of SUPIR's degradation-robust encoder E_dr (Yu et al. 2024, section 3.1), with D the frozen decoder.

Printed: |D(E_dr(x_LQ)) - D(E_dr(x_GT))|^2. An encoder that gives one latent for everything has no loss then, and people
who retrained it got dark images. The default compares with D(E(x_GT)), E the frozen encoder; "image" with x_GT itself;
"printed" is the paper's, its second half without gradients unless `both_halves`. Images are in [0, 1], unclamped.
Selected by `stages.encoder.module.objective.target=codec|image|printed`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from restore_lab.backbones.codec.codec import Codec

Target = Literal["codec", "image", "printed"]


class EncoderLoss:
    """Mean squared error between decoded images.

    Args:
        target: what the LQ's reconstruction is compared with.
        both_halves: let gradients through the printed target too.
    """

    def __init__(self, *, target: Target, both_halves: bool) -> None:
        if target not in ("codec", "image", "printed"):
            raise ValueError(f"objective.target={target!r} is not known; one of codec, image, printed")
        self.target, self.both_halves = target, both_halves

    def __call__(
        self, lq_BCHW: Tensor, hq_BCHW: Tensor, *, encode: Callable[[Tensor], Tensor], codec: Codec
    ) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and the reconstruction of the LQ.

        Args:
            lq_BCHW, hq_BCHW: pairs.
            encode: the encoder in training.
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
        return torch.nn.functional.mse_loss(restored_BCHW.float(), target_BCHW.float()), restored_BCHW.detach()
