"""SPIRE's modulation fusion: f_skip <- (1 + gamma) f_skip + beta, (gamma, beta) = M(f_con) (section 3.4).

M is a 1x1 convolution initialised to zero, so an untrained adaptor leaves the prior as it is. At the middle the
control's zero convolution is added, as in ControlNet. With `decoder=True` the decoder's own features at each join are
scaled too (Table 7, "f_skip and f_up"). `adaptor/fusion=modulation|modulation_decoder`.
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
            key = tap.name.replace(".", "_")
            self.sources[tap.name] = source.name
            self.beta[key] = zero_conv(source.channels, tap.skip or tap.channels)
            if tap.kind == "join":
                self.gamma[key] = zero_conv(source.channels, tap.skip)
            if tap.kind == "join" and decoder:
                self.gamma_up[key] = zero_conv(source.channels, tap.channels - tap.skip)

    def forward(self, tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: dict[str, Tensor]) -> tuple[Tensor, dict]:
        """The edit: shown every tap, it acts at joins and at the middle."""
        if tap.name not in self.sources:
            return h_BCHW, carry
        key, control = tap.name.replace(".", "_"), carry[self.sources[tap.name]]
        if tap.kind == "middle":
            return h_BCHW + self.beta[key](control).to(h_BCHW.dtype), carry
        up, skip = h_BCHW.split([tap.channels - tap.skip, tap.skip], dim=1)
        gamma, beta = self.gamma[key](control).to(h_BCHW.dtype), self.beta[key](control).to(h_BCHW.dtype)
        if key in self.gamma_up:
            up = (1 + self.gamma_up[key](control).to(h_BCHW.dtype)) * up
        return torch.cat([up, (1 + gamma) * skip + beta], dim=1), carry
