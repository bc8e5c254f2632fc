"""The base of the fusions, and where they add a trunk's features to the prior.

A fusion has layers per fusion point and its formula, `fuse`; the base calls that at the right taps.

In a UNet, controls are added at the middle block and at the joins: the middle reads the trunk's middle, the joins, in
order, read its skips from the last to the first. In an MM-DiT, controls are added after the blocks, k controls for N
blocks as in diffusers' SD3ControlNetModel: block i reads control floor(i k / N), and the last block none. If no block
would read the last control (k > N / 2), block i reads floor(i k / (N - 1)) instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from restore_lab.backbones.base import Backbone
    from restore_lab.types import Tap


@dataclass(frozen=True, kw_only=True)
class Controls:
    """A trunk's outputs: channels by control name, in order; `halves` is 2 if each concatenates two maps."""

    channels: Mapping[str, int]
    halves: int = 1


@dataclass(frozen=True, kw_only=True)
class FusionPoint:
    """One tap where a control is added: the tap, the control, the control's channels, and the key of the weights.

    MM-DiT blocks that read the same control share one key.
    """

    tap: Tap
    control: str
    channels: int
    key: str

    @property
    def width(self) -> int:
        """Channels that the control acts on: the skip's at a join, all elsewhere."""
        return self.tap.skip or self.tap.channels


class Fusion(nn.Module, ABC):
    """A fusion; an `Edit` whose carry is the trunk's features by name.

    Args:
        backbone: the prior.
        controls: the trunk's outputs; None for those of a whole encoder.

    Attributes:
        points: the fusion points by the name of their tap, in forward order.
    """

    def __init__(self, backbone: Backbone, *, controls: Controls | None = None) -> None:
        super().__init__()
        self.controls = controls or encoder_controls(backbone)
        self.points = {point.tap.name: point for point in fusion_points(backbone, self.controls)}

    def forward(
        self, tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The edit, called at every tap."""
        point = self.points.get(tap.name)
        return (h_BCHW if point is None else self.fuse(h_BCHW, carry[point.control], point=point)), carry

    @abstractmethod
    def fuse(self, h_BCHW: Tensor, control_BCHW: Tensor, *, point: FusionPoint) -> Tensor:
        """The formula: the prior's features with the trunk's, (B, C, h, w).

        Args:
            h_BCHW: the prior's features; at a join, the decoder's and then the skip's, which are `point.width` wide.
            control_BCHW: the trunk's features, (B, `point.channels`, h, w).
            point: where; `point.key` is the key of the layers.
        """


def encoder_controls(backbone: Backbone) -> Controls:
    """The controls of a trunk that copies the whole encoder, or all blocks but the last, without further layers."""
    if backbone.family == "mmdit":
        return Controls(channels={tap.name: tap.channels for tap in backbone.taps[1:-1]})
    return Controls(channels={tap.name: tap.channels for tap in backbone.taps if tap.kind in ("encoder", "middle")})


def fusion_points(backbone: Backbone, controls: Controls) -> list[FusionPoint]:
    """The fusion points in forward order, which starts at the middle block in a UNet."""
    if backbone.family == "mmdit":
        names, blocks = list(controls.channels), backbone.taps[1:]
        count, readers = len(names), len(blocks) - 1
        over = len(blocks) if (readers - 1) * count // len(blocks) == count - 1 else readers
        pairs = [(tap, names[i * count // over]) for i, tap in enumerate(blocks[:-1])]
        return [_fusion_point(tap, name, controls, key=name) for tap, name in pairs]
    skips = [tap.name for tap in backbone.taps if tap.kind == "encoder"]
    joins = [tap for tap in backbone.taps if tap.kind == "join"]
    middle = [(tap, tap.name) for tap in backbone.taps if tap.kind == "middle"]
    return [
        _fusion_point(tap, name, controls, key=tap.name)
        for tap, name in [*middle, *zip(joins, reversed(skips), strict=True)]
    ]


def _fusion_point(tap: Tap, name: str, controls: Controls, *, key: str) -> FusionPoint:
    return FusionPoint(tap=tap, control=name, channels=controls.channels[name], key=key.replace(".", "_"))
