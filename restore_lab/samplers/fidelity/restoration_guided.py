"""SUPIR's restoration-guided sampling (Yu et al. 2024, section 3.3). `sampler/fidelity=restoration_guided`.

Algorithm 1, lines 5 and 7: with k = (sigma_t / sigma_T)^tau_r, the prediction is interpolated towards the LQ latent,
x0 <- x0 - k (x0 - z_LQ).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from restore_lab.config.kinds import NonNegative
from restore_lab.samplers.fidelity.base import FidelityGuidance

if TYPE_CHECKING:
    from restore_lab.samplers.level import Level


class RestorationGuided(FidelityGuidance):
    """SUPIR's guidance towards the LQ latent.

    Args:
        tau_r: exponent, 0 or more: 0 returns the LQ latent in every step; the larger, the weaker the guidance. Null
            turns it off.
        s_tmin: no guidance in steps whose next sigma is at or below this; 0 skips only the last step, a negative number
            none (Algorithm 1 has no such threshold).
        recode: pull towards E(D(z_LQ)), as in the release, instead of z_LQ, as in the paper.
    """

    def __init__(self, *, tau_r: NonNegative | None, s_tmin: float, recode: bool = False) -> None:
        self.tau_r, self.s_tmin, self.recode = tau_r, float(s_tmin), recode and tau_r is not None
        self.edits_x0 = tau_r is not None

    def on_x0(self, x0_BCHW: Tensor, *, centre_BCHW: Tensor, level: Level) -> Tensor:
        if self.tau_r is None or level.next_sigma <= self.s_tmin:
            return x0_BCHW
        return x0_BCHW - level.share**self.tau_r * (x0_BCHW - centre_BCHW)  # Algorithm 1, line 7
