"""AdaRes: InstantIR's adaptive restoration (section 3.3, Eq. 7, Algorithm 1). `sampler/fidelity=adares`.

delta = |preview - x0|^2 / |preview - previous preview|^2, an image at a time: large where the input is informative.
Reading "reference" is the paper's: the reference of the next step is z_ref = preview + delta (z_LQ - preview), delta 1
at the start. Reading "residual" is the release's: delta multiplies what the aggregator adds. Both cut delta to [0, 1]
(the paper does not say so; beyond 1 the reference would lie on the other side of the LQ). The first previous preview is
zero. Works with every sampler and prediction type, since it sees previews and clean latents alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from restore_lab.config.kinds import Share
from restore_lab.samplers.fidelity.base import Free, Steer

if TYPE_CHECKING:
    from restore_lab.samplers.level import Level

TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The last step's preview, and delta for the next, one an image."""

    preview_BCHW: Tensor
    delta_B: Tensor


class AdaRes(Free):
    """The reference, or the residuals, by how far preview and denoising mean are apart.

    Args:
        mode: "reference" (the paper's Algorithm 1), "residual" (the release), or "off": previews as they are.
        preview_from: share of the steps before the first preview; until then the LQ's latent is the reference, and
            counts as the preview (the release's preview_start). 0 for previews in all.
    """

    def __init__(self, *, mode: Literal["reference", "residual", "off"], preview_from: Share = 0.0) -> None:
        self.mode, self.preview_from = mode, float(preview_from)
        self.watches = mode != "off"

    def before_model(self, *, level: Level, state: Any) -> Steer:
        early = level.done < self.preview_from
        delta: Tensor | float = 1.0 if state is None else state.delta_B.clamp(0, 1)
        if self.mode == "residual":
            return Steer(strength=delta, lq_reference=early)
        if self.mode == "reference":
            return Steer(blend=delta, lq_reference=early)
        return Steer(lq_reference=early)

    def watch(self, x0_BCHW: Tensor, preview_BCHW: Tensor | None, *, state: Any) -> Seen:
        """Delta of this step, for the next.

        Raises:
            ValueError: if the adaptor takes no preview.
        """
        if preview_BCHW is None:
            raise ValueError("AdaRes compares previews, and this adaptor makes none; use it with adaptor=instantir")
        before_BCHW = torch.zeros_like(preview_BCHW) if state is None else state.preview_BCHW
        return Seen(preview_BCHW=preview_BCHW, delta_B=relative_distance(preview_BCHW, x0_BCHW, before_BCHW))


def relative_distance(preview_BCHW: Tensor, x0_BCHW: Tensor, before_BCHW: Tensor) -> Tensor:
    """Eq. 7: |preview - x0|^2 / |preview - before|^2, one an image."""
    apart_B = (preview_BCHW - x0_BCHW).float().square().flatten(1).sum(dim=1)
    moved_B = (preview_BCHW - before_BCHW).float().square().flatten(1).sum(dim=1)
    return apart_B / moved_B.clamp_min(TINY)
