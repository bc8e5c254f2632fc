"""DRA's restoration sampling strategy (Eqs. 1, 2). `sampler/fidelity=rss`.

z_t <- z'_t + w g(t, T) (c_lq - z'_t), with g = (t/T - a) / (1 - a) above the threshold a and 0 below it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from torch import Tensor

from restore_lab.config.kinds import NonNegative, Range
from restore_lab.samplers.fidelity.base import FidelityGuidance

if TYPE_CHECKING:
    from restore_lab.samplers.level import Level


class RestorationSampling(FidelityGuidance):
    """DRA's interpolation of the latent towards the LQ latent after each step.

    Args:
        weight: w.
        threshold: a, in [0, 1): the fraction of the steps, at the end, without guidance.
        on: "latent", as in the paper, or "x0": interpolate the predicted clean latent by the same weight instead.
    """

    def __init__(
        self,
        *,
        weight: NonNegative,
        threshold: Annotated[float, Range(0, 1, below=True, unit="a share of the steps")],
        on: Literal["latent", "x0"] = "latent",
    ) -> None:
        self.weight, self.threshold = float(weight), float(threshold)
        self.edits_step, self.edits_x0 = on == "latent", on == "x0"

    def pull(self, level: Level) -> float:
        """w g(t, T; a) for the latent after the step, with t of T steps remaining."""
        above = level.remaining - self.threshold  # DRA, Eq. 2
        return self.weight * above / (1 - self.threshold) if above > 0 else 0.0

    def on_x0(self, x0_BCHW: Tensor, *, centre_BCHW: Tensor, level: Level) -> Tensor:
        return x0_BCHW + self.pull(level) * (centre_BCHW - x0_BCHW) if self.edits_x0 else x0_BCHW

    def after_step(self, z_BCHW: Tensor, *, centre_BCHW: Tensor, level: Level) -> Tensor:
        pull = self.pull(level)
        return torch.lerp(z_BCHW, centre_BCHW.to(z_BCHW.dtype), pull) if pull else z_BCHW  # DRA, Eq. 1
