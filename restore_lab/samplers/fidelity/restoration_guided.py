"""SUPIR's restoration-guided sampling (Yu et al. 2024, section 3.3). `sampler/fidelity=restoration_guided`.

Algorithm 1, lines 5 and 7: with k = (sigma_t / sigma_T)^tau_r the prediction moves by the share k towards the LQ's
latent, x0 <- x0 - k (x0 - z_LQ).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from restore_lab.config.kinds import NonNegative
from restore_lab.samplers.fidelity.base import Free

if TYPE_CHECKING:
    from restore_lab.samplers.level import Level


class RestorationGuided(Free):
    """SUPIR's guidance towards the LQ's latent.

    Args:
        tau_r: exponent, 0 or more: 0 gives the LQ's latent at every step, a large number leaves the sampler alone, and
            so does null.
        s_tmin: steps that end at or below this sigma are left alone; 0 leaves out the last only, whose end is 0;
            negative leaves out none (Algorithm 1 has no such gate).
        recode: pull towards E(D(z_LQ)), as the release does, and not towards z_LQ, as the paper does.
    """

    def __init__(self, *, tau_r: NonNegative | None, s_tmin: float, recode: bool = False) -> None:
        self.tau_r, self.s_tmin, self.recode = tau_r, float(s_tmin), recode and tau_r is not None
        self.edits_x0 = tau_r is not None

    def on_x0(self, x0_BCHW: Tensor, *, centre_BCHW: Tensor, level: Level) -> Tensor:
        if self.tau_r is None or level.following <= self.s_tmin:
            return x0_BCHW
        return x0_BCHW - level.share**self.tau_r * (x0_BCHW - centre_BCHW)
