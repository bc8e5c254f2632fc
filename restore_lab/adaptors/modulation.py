"""SPIRE's modulation fusion: f_skip <- (1 + gamma) f_skip + beta, (gamma, beta) = M(f_con) (section 3.4).

M is a 1x1 convolution initialised to zero, so an untrained adaptor leaves the prior as it is. The middle's output is
modulated like a skip ("gamma and beta of the middle layer", supplement B), which makes the paper's 275 M trainable
parameters to the digit. With `decoder=True` the decoder's own features at each join are scaled too (Table 7, "f_skip
and f_up"). `adaptor/fusion=modulation|modulation_decoder`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from restore_lab.adaptors.zero import joins_with_controls, zero_conv

if TYPE_CHECKING:
    from restore_lab.backbones.unet import UNetBackbone
    from restore_lab.types import Tap


class Modulation(nn.Module):
    """Scale and shift of the skips; an `Edit` whose carry is the trunk's features by tap name.

    Args:
        backbone: whose joins and middle are met.
        decoder: scale the decoder half of each join as well.
    """

    def __init__(self, backbone: UNetBackbone, *, decoder: bool) -> None:
        super().__init__()
        self.sources: dict[str, str] = {}
        self.gamma, self.beta, self.gamma_up = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for tap, source in joins_with_controls(backbone):
            key, width = tap.name.replace(".", "_"), tap.skip or tap.channels
            self.sources[tap.name] = source.name
            self.gamma[key] = zero_conv(source.channels, width)
            self.beta[key] = zero_conv(source.channels, width)
            if tap.kind == "join" and decoder:
                self.gamma_up[key] = zero_conv(source.channels, tap.channels - width)

    def forward(self, tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: dict[str, Tensor]) -> tuple[Tensor, dict]:
        """The edit: shown every tap, it acts at joins and at the middle."""
        if tap.name not in self.sources:
            return h_BCHW, carry
        key, control, width = tap.name.replace(".", "_"), carry[self.sources[tap.name]], tap.skip or tap.channels
        up, skip = h_BCHW.split([tap.channels - width, width], dim=1)
        gamma, beta = self.gamma[key](control).to(h_BCHW.dtype), self.beta[key](control).to(h_BCHW.dtype)
        if key in self.gamma_up:
            up = (1 + self.gamma_up[key](control).to(h_BCHW.dtype)) * up
        return torch.cat([up, (1 + gamma) * skip + beta], dim=1), carry
