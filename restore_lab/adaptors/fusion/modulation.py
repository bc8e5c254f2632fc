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

from restore_lab.adaptors.fusion.base import Controls, encoder_controls, fusion_points
from restore_lab.adaptors.fusion.zero_conv import zero_conv

if TYPE_CHECKING:
    from restore_lab.backbones.base import Backbone
    from restore_lab.types import Tap


class Modulation(nn.Module):
    """Scale and shift; an `Edit` whose carry is the trunk's features by name.

    Args:
        backbone: the prior.
        decoder: scale the decoder features of each join as well.
        controls: the trunk's outputs; None for those of a whole encoder.

    Raises:
        ValueError: for `decoder` on a backbone without a decoder half.
    """

    def __init__(self, backbone: Backbone, *, decoder: bool, controls: Controls | None = None) -> None:
        super().__init__()
        if decoder and backbone.family == "mmdit":
            raise ValueError("modulation of f_up needs a decoder half, which an MM-DiT has not; use fusion=modulation")
        self.places = {
            place.tap.name: place for place in fusion_points(backbone, controls or encoder_controls(backbone))
        }
        self.gamma, self.beta, self.gamma_up = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for place in self.places.values():
            if place.key in self.gamma:
                continue
            self.gamma[place.key] = zero_conv(place.channels, place.width)
            self.beta[place.key] = zero_conv(place.channels, place.width)
            if place.tap.kind == "join" and decoder:
                self.gamma_up[place.key] = zero_conv(place.channels, place.tap.channels - place.width)

    def forward(self, tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: dict[str, Tensor]) -> tuple[Tensor, dict]:
        """The edit, called at every tap."""
        place = self.places.get(tap.name)
        if place is None:
            return h_BCHW, carry
        key, control = place.key, carry[place.control]
        up, skip = h_BCHW.split([tap.channels - place.width, place.width], dim=1)
        gamma, beta = self.gamma[key](control).to(h_BCHW.dtype), self.beta[key](control).to(h_BCHW.dtype)
        if key in self.gamma_up:
            up = (1 + self.gamma_up[key](control).to(h_BCHW.dtype)) * up
        return torch.cat([up, (1 + gamma) * skip + beta], dim=1), carry  # SPIRE, section 3.4: f_skip
