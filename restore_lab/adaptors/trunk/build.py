"""The trunk of a prior's family: a UNet's (unet.py) or an MM-DiT's (mmdit.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from restore_lab.adaptors.trunk.mmdit import MMDiTTrunk
from restore_lab.adaptors.trunk.unet import Feed, Middle, Trunk

if TYPE_CHECKING:
    from restore_lab.backbones.base import Backbone


def trunk(
    backbone: Backbone,
    *,
    hint_channels: int,
    middle: Middle,
    depth: str | int | Sequence[int] = "whole",
    feed: Feed = "concat",
    text: bool = True,
) -> Trunk | MMDiTTrunk:
    """The trunk of the backbone's family.

    Args:
        backbone: whose denoiser is copied.
        hint_channels: channels of the hint (of each half, with `spatial`).
        middle: whether a UNet's copied middle block learns. SPIRE counts 275 M trainable parameters, which is the
            encoder without the middle (docs/deviations.md), so its copy stays as it was.
        depth: "whole"; "half"; on a UNet how many transformer layers each attention keeps (see `trim`), on an MM-DiT
            how many blocks are copied.
        feed: "concat" widens the first layer by the hint, "add" adds a layer of the hint's own behind it, "spatial"
            puts reference and LQ into one map.
        text: false takes the attention to the text out.

    Raises:
        ValueError: for an option that is not known.
    """
    if middle not in ("frozen", "trainable"):
        raise ValueError(f"adaptor.trunk.middle={middle!r} is not known; one of frozen, trainable")
    if feed not in ("concat", "add", "spatial"):
        raise ValueError(f"adaptor.trunk.feed={feed!r} is not known; one of concat, add, spatial")
    if backbone.family == "mmdit":
        return MMDiTTrunk(backbone, hint_channels=hint_channels, depth=depth, feed=feed, text=text)
    return Trunk(backbone, hint_channels=hint_channels, middle=middle, depth=depth, feed=feed, text=text)
