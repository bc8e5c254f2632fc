"""ZeroSFT: SUPIR's connector (Yu et al. 2024, section 3.1 and Fig. 3c). `adaptor/fusion=zero_sft`.

At a join with decoder features X_f, skip X_s and control X_c:
    X = [X_f, X_s + Z(X_c)],  X_fo = GN(X) (1 + gamma(a)) + beta(a),  a = SiLU(conv(X_c))
with Z a zero 1x1 convolution, and gamma and beta zero 3x3 convolutions of 128 features; the middle block has no X_f. An
untrained connector is not the identity, because of the group norm. The release adds two cross attentions before the
upsamplers ("ZeroCrossAttn", not zero-initialised): `attention: true`. Shapes: (B, C, h, w).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from restore_lab.adaptors.fusion.base import Controls, Fusion, FusionPoint
from restore_lab.adaptors.fusion.zero_conv import zero_conv

if TYPE_CHECKING:
    from restore_lab.backbones.base import Backbone
    from restore_lab.types import Tap

NORM_GROUPS = 32
BLOCK_INPUT = "block input"  # its key in the carry


def group_norm(channels: int) -> nn.GroupNorm:
    """A group norm of gcd(32, channels) groups: 32, or fewer for toy models."""
    return nn.GroupNorm(math.gcd(NORM_GROUPS, channels), channels)


class Connector(nn.Module):
    """One ZeroSFT.

    Args:
        control: channels of X_c.
        skip: channels of X_s, or of the middle block's output.
        up: channels of X_f, 0 at the middle block.
        hidden: channels of a.
    """

    def __init__(self, *, control: int, skip: int, up: int, hidden: int) -> None:
        super().__init__()
        self.skip = skip
        self.zero = zero_conv(control, skip)
        self.norm = group_norm(up + skip)
        self.shared = nn.Sequential(nn.Conv2d(control, hidden, 3, padding=1), nn.SiLU())
        self.gamma = zero_conv(hidden, up + skip, size=3)
        self.beta = zero_conv(hidden, up + skip, size=3)

    def forward(self, h_BCHW: Tensor, control_BCHW: Tensor) -> Tensor:
        """X_fo from [X_f, X_s] and X_c."""
        up, skip = h_BCHW.split([h_BCHW.shape[1] - self.skip, self.skip], dim=1)
        joined = torch.cat([up, skip + self.zero(control_BCHW).to(h_BCHW.dtype)], dim=1)  # X
        a = self.shared(control_BCHW)
        return self.norm(joined) * (1 + self.gamma(a)) + self.beta(a)  # X_fo


class ControlAttention(nn.Module):
    """The release's cross attention from decoder features (queries) to control features, with a residual."""

    def __init__(self, *, width: int, control: int) -> None:
        super().__init__()
        from diffusers.models.attention_processor import Attention

        head = min(64, width)
        self.norm, self.norm_control = group_norm(width), group_norm(control)
        self.attention = Attention(
            query_dim=width, cross_attention_dim=control, heads=width // head, dim_head=head, bias=False, out_bias=True
        )

    def forward(self, h_BCHW: Tensor, control_BCHW: Tensor) -> Tensor:
        """h + attention(norm(h), norm(control))."""
        query_BLD = self.norm(h_BCHW).flatten(2).transpose(1, 2)
        context_BLD = self.norm_control(control_BCHW).flatten(2).transpose(1, 2)
        out_BLD = self.attention(query_BLD, encoder_hidden_states=context_BLD)
        return h_BCHW + out_BLD.transpose(1, 2).reshape(h_BCHW.shape)


class ZeroSFT(Fusion):
    """Connectors at all fusion points.

    In an MM-DiT the connector acts on a block's update of the residual stream, such that the norm does not break the
    stream: h <- h_in + ZeroSFT(h - h_in), with h_in the block's input.

    Args:
        backbone: the prior.
        hidden: channels of the features that gamma and beta read.
        attention: add the release's cross attentions before the upsamplers, each with the control of the last join.
        controls: the trunk's outputs; None for those of a whole encoder.

    Raises:
        ValueError: for `attention` on a backbone without upsamplers.
    """

    def __init__(self, backbone: Backbone, *, hidden: int, attention: bool, controls: Controls | None = None) -> None:
        super().__init__(backbone, controls=controls)
        if attention and backbone.family == "mmdit":
            raise ValueError("ZeroCrossAttn sits before upsamplers, and an MM-DiT has none; use fusion=zero_sft")
        self.on_updates = backbone.family == "mmdit"
        self.connectors = nn.ModuleDict()
        joins, self.points = self.points, {}  # in the order of the taps, with those before upsamplers
        last: FusionPoint | None = None
        for tap in backbone.taps:
            if (point := joins.get(tap.name)) is not None:
                self.points[tap.name] = last = point
                if point.key not in self.connectors:
                    self.connectors[point.key] = Connector(
                        control=point.channels, skip=point.width, up=tap.channels - point.width, hidden=hidden
                    )
            elif tap.kind == "upsample" and attention and last is not None:
                self.points[tap.name] = point = replace(last, tap=tap, key=tap.name.replace(".", "_"))
                self.connectors[point.key] = ControlAttention(width=tap.channels, control=point.channels)

    def fuse(self, h_BCHW: Tensor, control_BCHW: Tensor, *, point: FusionPoint) -> Tensor:
        return self.connectors[point.key](h_BCHW, control_BCHW).to(h_BCHW.dtype)

    def forward(
        self, tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.on_updates:
            return super().forward(tap, h_BCHW, temb_BD, carry)
        if tap.name in self.points:
            before_BCHW = carry[BLOCK_INPUT]
            update_BCHW, _ = super().forward(tap, h_BCHW - before_BCHW, temb_BD, carry)
            h_BCHW = before_BCHW + update_BCHW
        return h_BCHW, {**carry, BLOCK_INPUT: h_BCHW}
