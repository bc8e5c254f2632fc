"""Keeps a sample near the LQ while it is made. `sampler/fidelity=none|restoration_guided|rss|adares`.

A fidelity guidance has three places in a step: `before_model` says how the adaptor is steered, `on_x0` may edit the
predicted clean latent, `after_step` the latent that the step gave. What it remembers of an image travels in `state`.

SUPIR's restoration-guided sampling (Yu et al. 2024, section 3.3 and Algorithm 1, lines 5 and 7): with k = (sigma_t /
sigma_T)^tau_r the prediction moves by the share k towards the LQ's latent, x0 <- x0 - k (x0 - z_LQ).
DRA's restoration sampling strategy (Eqs. 1, 2): z_t <- z'_t + w g(t, T) (c_lq - z'_t), g = (t/T - a) / (1 - a) above
the threshold a and 0 below it. AdaRes stands in adares.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import Tensor

from restore_lab.config.kinds import NotNegative, Range

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


class RestorationGuided(Free):
    """SUPIR's guidance towards the LQ's latent.

    Args:
        tau_r: exponent, 0 or more: 0 gives the LQ's latent at every step, a large number leaves the sampler alone, and
            so does null.
        s_tmin: steps that end at or below this sigma are left alone; 0 leaves out the last only, whose end is 0;
            negative leaves out none (Algorithm 1 has no such gate).
        recode: pull towards E(D(z_LQ)), as the release does, and not towards z_LQ, as the paper does.
    """

    def __init__(self, *, tau_r: NotNegative | None, s_tmin: float, recode: bool = False) -> None:
        self.tau_r, self.s_tmin, self.recode = tau_r, float(s_tmin), recode and tau_r is not None
        self.edits_x0 = tau_r is not None

    def on_x0(self, x0_BCHW: Tensor, *, centre_BCHW: Tensor, level: Level) -> Tensor:
        if self.tau_r is None or level.following <= self.s_tmin:
            return x0_BCHW
        return x0_BCHW - level.share**self.tau_r * (x0_BCHW - centre_BCHW)


class RestorationSampling(Free):
    """DRA's pull of the latent between steps.

    Args:
        weight: w.
        threshold: a, in [0, 1): the share of the steps at whose end nothing is pulled.
        on: "latent" as written, or "x0": the predicted clean latent is pulled by the same share instead.
    """

    def __init__(
        self,
        *,
        weight: NotNegative,
        threshold: Annotated[float, Range(0, 1, below=True, unit="a share of the steps")],
        on: Literal["latent", "x0"] = "latent",
    ) -> None:
        self.weight, self.threshold = float(weight), float(threshold)
        self.edits_step, self.edits_x0 = on == "latent", on == "x0"

    def pull(self, level: Level) -> float:
        """w g(t, T; a) for the latent that the step gives, t of whose T steps are left."""
        above = level.left - self.threshold
        return self.weight * above / (1 - self.threshold) if above > 0 else 0.0

    def on_x0(self, x0_BCHW: Tensor, *, centre_BCHW: Tensor, level: Level) -> Tensor:
        return x0_BCHW + self.pull(level) * (centre_BCHW - x0_BCHW) if self.edits_x0 else x0_BCHW

    def after_step(self, z_BCHW: Tensor, *, centre_BCHW: Tensor, level: Level) -> Tensor:
        pull = self.pull(level)
        return torch.lerp(z_BCHW, centre_BCHW.to(z_BCHW.dtype), pull) if pull else z_BCHW
