"""Build the trunk for a prior's family: UNet (unet.py) or MM-DiT (mmdit.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from restore_lab.adaptors.trunk.mmdit import MMDiTTrunk
from restore_lab.adaptors.trunk.unet import Depth, Feed, Middle, Trunk
from restore_lab.backbones.unet import UNetBackbone
from restore_lab.config.validate import check_arguments

if TYPE_CHECKING:
    from restore_lab.backbones.base import Backbone


@check_arguments
def trunk(
    backbone: Backbone,
    *,
    hint_channels: int,
    middle: Middle,
    depth: Depth = "whole",
    feed: Feed = "concat",
    text: bool = True,
) -> Trunk | MMDiTTrunk:
    """The trunk for the backbone's family.

    Args:
        backbone: the prior, whose denoiser is copied.
        hint_channels: channels of the hint; with `spatial`, of the LQ latent.
        middle: whether a UNet's copied middle block is trainable. SPIRE reports 275 M trainable parameters, the
            encoder's without the middle block (docs/deviations.md), so its middle block is frozen.
        depth: "whole" or "half"; or the number of transformer layers per attention of a UNet (see `trim`), or of copied
            blocks of an MM-DiT.
        feed: "concat" concatenates the hint to z_t, "add" adds a convolution of the hint after the first layer,
            "spatial" stacks LQ latent and reference in one map, without z_t.
        text: false removes the cross attention to the text.

    Raises:
        ValueError: for an unknown option, or a depth that does not fit the prior.
    """
    if backbone.family == "mmdit":
        return MMDiTTrunk(backbone, hint_channels=hint_channels, depth=depth, feed=feed, text=text)
    assert isinstance(backbone, UNetBackbone)
    return Trunk(backbone, hint_channels=hint_channels, middle=middle, depth=depth, feed=feed, text=text)
