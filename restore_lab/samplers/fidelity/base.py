"""Fidelity guidance: keeps a sample close to the LQ image. `sampler/fidelity=none|restoration_guided|rss|adares`.

It has three hooks in a step: `before_model` steers the adaptor, `on_x0` may edit the predicted clean latent and
`after_step` the latent after the scheduler's step. State that depends on the image is passed through `state`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from restore_lab.samplers.level import Level


@dataclass(frozen=True, kw_only=True)
class Steer:
    """The adaptor's settings for a step, each a number or one per image, (B,).

    `blend` interpolates the adaptor's reference towards the LQ latent (0: the reference, 1: the LQ latent); `strength`
    scales the adaptor's edits; with `lq_reference` the LQ latent is the reference and no preview is computed.
    """

    blend: Tensor | float = 0.0
    strength: Tensor | float = 1.0
    lq_reference: bool = False


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The guided model's output, and the preview that its adaptor used as reference, if any."""

    out_BCHW: Tensor
    preview_BCHW: Tensor | None = None


class FidelityGuidance:
    """The base class, whose hooks change nothing: no fidelity guidance.

    Attributes:
        edits_x0, edits_step, watches: whether `on_x0`, `after_step` and `watch` do anything; the samplers skip the
            conversions that only an inactive hook would need.
        recode: pull towards E(D(z_LQ)) instead of z_LQ.
    """

    edits_x0 = False
    edits_step = False
    watches = False
    recode = False

    def before_model(self, *, level: Level, state: Any) -> Steer:
        """The adaptor's settings for the step; `state` is None before the first step."""
        return Steer()

    def on_x0(self, x0_BCHW: Tensor, *, centre_BCHW: Tensor, level: Level) -> Tensor:
        """The guided clean latent.

        Args:
            x0_BCHW: the predicted clean latent.
            centre_BCHW: the LQ latent that the guidance pulls towards.
            level: the step's noise level.
        """
        return x0_BCHW

    def watch(self, x0_BCHW: Tensor, preview_BCHW: Tensor | None, *, state: Any) -> Any:
        """The state for the next step, from this step's clean latent and preview."""
        return state

    def after_step(self, z_BCHW: Tensor, *, centre_BCHW: Tensor, level: Level) -> Tensor:
        """The guided latent after the scheduler's step, scaled as the prior's input."""
        return z_BCHW
