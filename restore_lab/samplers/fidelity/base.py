"""Keeps a sample near the LQ while it is made. `sampler/fidelity=none|restoration_guided|rss|adares`.

A fidelity guidance has three places in a step: `before_model` says how the adaptor is steered, `on_x0` may edit the
predicted clean latent, `after_step` the latent that the step gave. What it remembers of an image travels in `state`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from restore_lab.samplers.level import Level


@dataclass(frozen=True, kw_only=True)
class Steer:
    """How the adaptor is steered in a step, a number or one an image.

    `blend` moves an adaptor's reference towards the LQ's latent (0 leaves it, 1 is the LQ's latent); `strength` is how
    far the adaptor's edits go; with `lq_reference` no reference is made, and the LQ's latent takes its place.
    """

    blend: Tensor | float = 0.0
    strength: Tensor | float = 1.0
    lq_reference: bool = False


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the guided model said, and the preview that its adaptor took as reference, if it takes one."""

    out_BCHW: Tensor
    preview_BCHW: Tensor | None = None


class Free:
    """No fidelity guidance, and the base of all: every place leaves things as they are.

    Attributes:
        edits_x0, edits_step, watches: which of the places do something; what does nothing costs nothing.
        recode: pull towards E(D(z_LQ)) in the place of z_LQ.
    """

    edits_x0 = False
    edits_step = False
    watches = False
    recode = False

    def before_model(self, *, level: Level, state: Any) -> Steer:
        """How the adaptor is steered; `state` is None before the first step."""
        return Steer()

    def on_x0(self, x0_BCHW: Tensor, *, centre_BCHW: Tensor, level: Level) -> Tensor:
        """The clean latent after the step's guidance.

        Args:
            x0_BCHW: what the model predicts.
            centre_BCHW: the LQ's latent.
            level: the step's.
        """
        return x0_BCHW

    def watch(self, x0_BCHW: Tensor, preview_BCHW: Tensor | None, *, state: Any) -> Any:
        """The state for the next step, from the clean latent and the preview of this one."""
        return state

    def after_step(self, z_BCHW: Tensor, *, centre_BCHW: Tensor, level: Level) -> Tensor:
        """The latent after the step's guidance, as the prior will see it."""
        return z_BCHW
