"""The EDM sampler with churn, first order. `sampler=edm` (SUPIR, Algorithm 1; Karras et al. 2022, Algorithm 2).

In x = z / alpha a noise level is sigma = sigma_t / alpha_t. Each step raises the noise, x_hat = x + s_noise n
sqrt(sigma_hat^2 - sigma^2) with sigma_hat = (1 + gamma) sigma, evaluates the model at sigma_hat, and takes Euler's step
from there. diffusers' Euler scheduler evaluates at the level before raising; this one is ours for that reason.
The prior sees z = alpha x (x / sqrt(1 + sigma^2) if it preserves variance) at its nearest timestep; a flow, whose last
sigma is infinite, starts at 4096.
Shapes: latents (B, C, h, w).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from restore_lab.backbones.schedule import ALPHA_FLOOR, VariancePreserving
from restore_lab.config.kinds import NonNegative
from restore_lab.random import noise_like
from restore_lab.samplers.level import Level, levels
from restore_lab.samplers.loop import Predict, Sampler
from restore_lab.samplers.spacing import timesteps
from restore_lab.system.xla import sync

if TYPE_CHECKING:
    from restore_lab.backbones.schedule import Schedule
    from restore_lab.samplers.fidelity.base import Steer


@dataclass(kw_only=True, eq=False)
class EdmSampler(Sampler):
    """Euler steps with churn.

    Args:
        s_churn: noise raised in all, shared over the steps; 0 is deterministic.
        s_noise: deviation of the noise put in.
        s_tmin, s_tmax: sigmas between which noise is raised; null for no upper end.
        timestep_spacing: where the steps stand: "sgm", as in SUPIR's release, "leading", "linspace" or "trailing".
        steps_offset: added to leading timesteps.
    """

    s_churn: NonNegative
    s_noise: NonNegative
    s_tmin: float
    s_tmax: float | None
    timestep_spacing: Literal["sgm", "leading", "linspace", "trailing"] = "sgm"
    steps_offset: int = 0

    def gamma(self, sigma: float) -> float:
        """By how much of itself the noise of a step is raised (Karras et al., Algorithm 2, line 5)."""
        inside = self.s_tmin <= sigma <= (math.inf if self.s_tmax is None else self.s_tmax)
        return min(self.s_churn / self.steps, math.sqrt(2) - 1) if inside else 0.0

    @torch.no_grad()
    def __call__(
        self, predict: Predict, lq_latent_BCHW: Tensor, *, centre_BCHW: Tensor, seeds: Sequence[int], schedule: Schedule
    ) -> Tensor:
        times = timesteps(schedule, self.timestep_spacing, steps=self.steps, offset=self.steps_offset)
        x_BCHW = self.init(lq_latent_BCHW, seeds=seeds, t=float(times[0]), schedule=schedule)
        x_BCHW, state = x_BCHW / _alpha(schedule, float(times[0])), None
        for i, level in enumerate(self.bar(levels(schedule, times))):
            sigma, following = level.sigma, level.following
            sigma_hat = sigma * (1 + self.gamma(sigma))
            if sigma_hat > sigma:
                noise_BCHW = noise_like(x_BCHW, seeds, f"churn {i}")
                x_BCHW = x_BCHW + self.s_noise * math.sqrt(sigma_hat**2 - sigma**2) * noise_BCHW
                level = level.raise_to(sigma_hat, schedule=schedule)
            steer = self.fidelity.before_model(level=level, state=state)
            x0_BCHW, preview_BCHW = self._denoised(
                predict, x_BCHW, sigma_hat, level=level, steer=steer, schedule=schedule
            )
            if self.fidelity.watches:
                state = self.fidelity.watch(x0_BCHW, preview_BCHW, state=state)
            x0_BCHW = self.fidelity.on_x0(x0_BCHW, centre_BCHW=centre_BCHW, level=level)
            x_BCHW = x_BCHW + (following - sigma_hat) / sigma_hat * (x_BCHW - x0_BCHW)
            if self.fidelity.edits_step:
                alpha = 1.0 if following == 0 else _alpha(schedule, float(times[i + 1]))
                z_BCHW = self.fidelity.after_step(alpha * x_BCHW, centre_BCHW=centre_BCHW, level=level)
                x_BCHW = z_BCHW / alpha
        return x_BCHW

    def _denoised(
        self, predict: Predict, x_BCHW: Tensor, sigma: float, *, level: Level, steer: Steer, schedule: Schedule
    ) -> tuple[Tensor, Tensor | None]:
        """D(x, sigma), the model asked at the timestep whose sigma is nearest, and the adaptor's preview."""
        t = schedule.time_of(sigma)
        z_BCHW = x_BCHW * _alpha(schedule, t)
        t_B = torch.full((len(x_BCHW),), t)
        t_B = (t_B.long() if isinstance(schedule, VariancePreserving) else t_B).to(x_BCHW.device)
        sync(z_BCHW)  # as in loop.py
        said = predict(z_BCHW, t_B, level, steer)
        sync(said.out_BCHW)
        return schedule.to_x0(said.out_BCHW, z_BCHW, t_B), said.preview_BCHW


def _alpha(schedule: Schedule, t: float) -> float:
    """alpha(t), floored where there is nothing but noise."""
    return max(float(schedule.alpha(t).double()), ALPHA_FLOOR)
