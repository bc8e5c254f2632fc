"""AdaRes: InstantIR's adaptive restoration (section 3.3, Eq. 7, Algorithm 1). `sampler/fidelity=adares`.

delta = |preview - x0|^2 / |preview - previous preview|^2, per image: large if the LQ image is informative. Mode
"reference" follows the paper: the next step's reference is z_ref = preview + delta (z_LQ - preview), with delta 1 in
the first step. Mode "residual" follows the release: delta scales the aggregator's residuals. Both clamp delta to [0, 1]
(not in the paper; above 1 the reference would extrapolate past z_LQ). The first previous preview is zero. It works with
every sampler and prediction type, because it reads only previews and clean latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from restore_lab.config.kinds import Share
from restore_lab.samplers.fidelity.base import FidelityGuidance, Steer

if TYPE_CHECKING:
    from restore_lab.samplers.level import Level

TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class AdaResState:
    """The last step's preview, and delta per image for the next step."""

    preview_BCHW: Tensor
    delta_B: Tensor


class AdaRes(FidelityGuidance):
    """Reference or residuals weighted by the distance between preview and predicted clean latent.

    Args:
        mode: "reference" (the paper's Algorithm 1), "residual" (the release), or "off": the preview is the reference.
        preview_from: fraction of the steps before the first preview (the release's preview_start); until then the LQ
            latent is both reference and preview. 0 uses previews in all steps.
    """

    def __init__(self, *, mode: Literal["reference", "residual", "off"], preview_from: Share = 0.0) -> None:
        self.mode, self.preview_from = mode, float(preview_from)
        self.watches = mode != "off"

    def before_model(self, *, level: Level, state: Any) -> Steer:
        early = level.progress < self.preview_from
        delta: Tensor | float = 1.0 if state is None else state.delta_B.clamp(0, 1)
        if self.mode == "residual":
            return Steer(strength=delta, lq_reference=early)
        if self.mode == "reference":
            return Steer(blend=delta, lq_reference=early)  # Algorithm 1, line 5
        return Steer(lq_reference=early)

    def watch(self, x0_BCHW: Tensor, preview_BCHW: Tensor | None, *, state: Any) -> AdaResState:
        """This step's delta, for the next step.

        Raises:
            ValueError: if the adaptor has no previewer.
        """
        if preview_BCHW is None:
            raise ValueError("AdaRes compares previews, and this adaptor makes none; use it with adaptor=instantir")
        before_BCHW = torch.zeros_like(preview_BCHW) if state is None else state.preview_BCHW
        return AdaResState(preview_BCHW=preview_BCHW, delta_B=relative_distance(preview_BCHW, x0_BCHW, before_BCHW))


def relative_distance(preview_BCHW: Tensor, x0_BCHW: Tensor, before_BCHW: Tensor) -> Tensor:
    """InstantIR, Eq. 7: |preview - x0|^2 / |preview - before|^2 per image, (B,)."""
    apart_B = (preview_BCHW - x0_BCHW).float().square().flatten(1).sum(dim=1)
    moved_B = (preview_BCHW - before_BCHW).float().square().flatten(1).sum(dim=1)
    return apart_B / moved_B.clamp_min(TINY)
