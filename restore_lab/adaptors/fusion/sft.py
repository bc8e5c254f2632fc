"""InstantIR's SFT connector (section 3.2, Eq. 6): preview features modulated by the LQ features, added to the skip.

    h_res = (1 + alpha) h_p + beta,  (alpha, beta) = M(h_o),  h_p, h_o = Split(H)
M is SUPIR's: a 3x3 convolution to 128 features, SiLU, and one 3x3 convolution each for alpha and beta, not
zero-initialised. The release adds a zero 1x1 convolution after h_res, which is not in InstantIR's Eq. 6; with it,
training starts from the unchanged prior. For a trunk with one feature map, h_p = h_o. `adaptor/fusion=sft`.
Shapes: (B, C, h, w), or (B, 2 C, h, w) for [p | o].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from restore_lab.adaptors.fusion.base import Controls, Fusion, FusionPoint
from restore_lab.adaptors.fusion.zero_conv import add_residual, zero_conv

if TYPE_CHECKING:
    from restore_lab.backbones.base import Backbone


class SFTConnector(nn.Module):
    """One connector.

    Args:
        channels: channels of h_p and of h_o.
        hidden: channels of the features that alpha and beta read.
        width: channels of the output.
    """

    def __init__(self, *, channels: int, hidden: int, width: int) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Conv2d(channels, hidden, 3, padding=1), nn.SiLU())
        self.alpha = nn.Conv2d(hidden, channels, 3, padding=1)
        self.beta = nn.Conv2d(hidden, channels, 3, padding=1)
        self.zero = zero_conv(channels, width)

    def forward(self, preview_BCHW: Tensor, lq_BCHW: Tensor) -> Tensor:
        """The residual: Z((1 + alpha) h_p + beta)."""
        a = self.shared(lq_BCHW)
        return self.zero((1 + self.alpha(a)) * preview_BCHW + self.beta(a))  # InstantIR, Eq. 6


class SFT(Fusion):
    """Connectors at all fusion points.

    Args:
        backbone: the prior.
        hidden: channels of the features that alpha and beta read.
        controls: the trunk's outputs; None for those of a whole encoder.
    """

    def __init__(self, backbone: Backbone, *, hidden: int, controls: Controls | None = None) -> None:
        super().__init__(backbone, controls=controls)
        self.connectors = nn.ModuleDict()
        for point in self.points.values():
            if point.key not in self.connectors:
                self.connectors[point.key] = SFTConnector(
                    channels=point.channels // self.controls.halves, hidden=hidden, width=point.width
                )

    def fuse(self, h_BCHW: Tensor, control_BCHW: Tensor, *, point: FusionPoint) -> Tensor:
        preview_BCHW, lq_BCHW = control_BCHW.chunk(2, dim=1) if self.controls.halves == 2 else [control_BCHW] * 2
        return add_residual(h_BCHW, self.connectors[point.key](preview_BCHW, lq_BCHW).to(h_BCHW.dtype))
