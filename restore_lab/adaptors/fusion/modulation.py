"""SPIRE's modulation fusion: f_skip <- (1 + gamma) f_skip + beta, (gamma, beta) = M(f_con) (section 3.4).

M is a zero-initialised 1x1 convolution, so an untrained adaptor does not change the prior. The middle block's output is
modulated like a skip ("gamma and beta of the middle layer", supplement B); this reproduces the paper's 275 M trainable
parameters. With `decoder=True` the decoder features at each join are scaled too (Table 7, "f_skip and f_up"); an MM-DiT
has no such features. `adaptor/fusion=modulation|modulation_decoder`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from restore_lab.adaptors.fusion.base import Controls, Fusion, FusionPoint
from restore_lab.adaptors.fusion.zero_conv import zero_conv

if TYPE_CHECKING:
    from restore_lab.backbones.base import Backbone


class Modulation(Fusion):
    """Scale and shift.

    Args:
        backbone: the prior.
        decoder: scale the decoder features of each join as well.
        controls: the trunk's outputs; None for those of a whole encoder.

    Raises:
        ValueError: for `decoder` on a backbone without a decoder half.
    """

    def __init__(self, backbone: Backbone, *, decoder: bool, controls: Controls | None = None) -> None:
        super().__init__(backbone, controls=controls)
        if decoder and backbone.family == "mmdit":
            raise ValueError("modulation of f_up needs a decoder half, which an MM-DiT has not; use fusion=modulation")
        self.gamma, self.beta, self.gamma_up = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for point in self.points.values():
            if point.key in self.gamma:
                continue
            self.gamma[point.key] = zero_conv(point.channels, point.width)
            self.beta[point.key] = zero_conv(point.channels, point.width)
            if point.tap.kind == "join" and decoder:
                self.gamma_up[point.key] = zero_conv(point.channels, point.tap.channels - point.width)

    def fuse(self, h_BCHW: Tensor, control_BCHW: Tensor, *, point: FusionPoint) -> Tensor:
        up_BCHW, skip_BCHW = h_BCHW.split([h_BCHW.shape[1] - point.width, point.width], dim=1)
        gamma_BCHW, beta_BCHW = (layer[point.key](control_BCHW).to(h_BCHW.dtype) for layer in (self.gamma, self.beta))
        if point.key in self.gamma_up:
            up_BCHW = (1 + self.gamma_up[point.key](control_BCHW).to(h_BCHW.dtype)) * up_BCHW  # SPIRE, Table 7
        return torch.cat([up_BCHW, (1 + gamma_BCHW) * skip_BCHW + beta_BCHW], dim=1)  # SPIRE, section 3.4: f_skip
