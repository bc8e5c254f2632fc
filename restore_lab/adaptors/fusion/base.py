"""Where a trunk's features meet the prior: what the fusions of both families share.

On a UNet a control enters at the middle and at the joins; the middle is fed by the trunk's middle, the joins, in order,
by its skips from the last to the first. On an MM-DiT controls enter behind the blocks, each of k controls behind its
share of the N blocks, as in diffusers' SD3ControlNetModel: block i hears control floor(i k / N), the last block none;
where no block would then hear the last control (k > N / 2), floor(i k / (N - 1)).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from restore_lab.backbones.base import Backbone
    from restore_lab.types import Tap


@dataclass(frozen=True, kw_only=True)
class Controls:
    """What a trunk hands over: channels by control name, in order; `halves` 2 if each is two maps side by side."""

    channels: Mapping[str, int]
    halves: int = 1


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """One place: the backbone's tap, the control that enters, its channels, and the name of the weights that it needs.

    Several places may share one name: the blocks of an MM-DiT that hear the same control.
    """

    tap: Tap
    control: str
    channels: int
    key: str

    @property
    def width(self) -> int:
        """Channels of what the control is for: the skip at a join, all elsewhere."""
        return self.tap.skip or self.tap.channels


def encoder_controls(backbone: Backbone) -> Controls:
    """The controls of a trunk that copies the whole encoder, or all blocks but the last, at the prior's own widths."""
    if backbone.family == "mmdit":
        return Controls(channels={tap.name: tap.channels for tap in backbone.taps[1:-1]})
    return Controls(channels={tap.name: tap.channels for tap in backbone.taps if tap.kind in ("encoder", "middle")})


def meetings(backbone: Backbone, controls: Controls) -> list[Meeting]:
    """The places in the order visited, on a UNet the middle first."""
    if backbone.family == "mmdit":
        names, blocks = list(controls.channels), backbone.taps[1:]
        count, heard = len(names), len(blocks) - 1
        over = len(blocks) if (heard - 1) * count // len(blocks) == count - 1 else heard
        pairs = [(tap, names[i * count // over]) for i, tap in enumerate(blocks[:-1])]
        return [_meeting(tap, name, controls, key=name) for tap, name in pairs]
    skips = [tap.name for tap in backbone.taps if tap.kind == "encoder"]
    joins = [tap for tap in backbone.taps if tap.kind == "join"]
    middle = [(tap, tap.name) for tap in backbone.taps if tap.kind == "middle"]
    return [
        _meeting(tap, name, controls, key=tap.name)
        for tap, name in [*middle, *zip(joins, reversed(skips), strict=True)]
    ]


def _meeting(tap: Tap, name: str, controls: Controls, *, key: str) -> Meeting:
    return Meeting(tap=tap, control=name, channels=controls.channels[name], key=key.replace(".", "_"))
