"""Keeps a sample near the LQ by editing the predicted clean latent. `sampler/fidelity=none|restoration_guided`.

SUPIR's restoration-guided sampling (Yu et al. 2024, section 3.4 and Algorithm 1, lines 7-8): with k = (sigma_t /
sigma_T)^tau_r the prediction moves by the share k towards the LQ's latent, x0 <- x0 - k (x0 - z_LQ): far while the
noise is high, hardly at all at the end. The release stops where the next sigma falls below 0.05.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from restore_lab.samplers.level import Level


class Free:
    """No fidelity guidance."""

    recode = False

    def on_x0(self, x0_BCHW: Tensor, *, centre_BCHW: Tensor, level: Level) -> Tensor:
        return x0_BCHW


class RestorationGuided:
    """SUPIR's guidance towards the LQ's latent.

    Args:
        tau_r: exponent, 0 or more: 0 gives the LQ's latent at every step, a large number leaves the sampler alone, and
            so does null.
        s_tmin: steps that end at or below this sigma are left alone; 0 leaves out the last only, whose end is 0;
            negative leaves out none (Algorithm 1 has no such gate).
        recode: pull towards E(D(z_LQ)), as the release does, and not towards z_LQ, as the paper does.
    """

    def __init__(self, *, tau_r: float | None, s_tmin: float, recode: bool = False) -> None:
        if tau_r is not None and tau_r < 0:
            raise ValueError(f"sampler.fidelity.tau_r={tau_r} must not be negative; null turns it off")
        self.tau_r, self.s_tmin, self.recode = tau_r, float(s_tmin), recode and tau_r is not None

    def on_x0(self, x0_BCHW: Tensor, *, centre_BCHW: Tensor, level: Level) -> Tensor:
        """The clean latent after the step's guidance.

        Args:
            x0_BCHW: what the model predicts.
            centre_BCHW: the LQ's latent.
            level: the step's.
        """
        if self.tau_r is None or level.following <= self.s_tmin:
            return x0_BCHW
        return x0_BCHW - level.share**self.tau_r * (x0_BCHW - centre_BCHW)
