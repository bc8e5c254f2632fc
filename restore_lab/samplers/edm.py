"""The first-order EDM sampler with churn. `sampler=edm` (SUPIR, Algorithm 1; Karras et al. 2022, Algorithm 2).

It works on x = z / alpha, whose noise level is sigma = sigma_t / alpha_t. Each step adds noise, x_hat = x + s_noise n
sqrt(sigma_hat^2 - sigma^2) with sigma_hat = (1 + gamma) sigma, evaluates the model at sigma_hat and takes an Euler step
from there. diffusers' EulerDiscreteScheduler evaluates the model at sigma, before churn, and is not used for that
reason. The prior gets z = alpha x (x / sqrt(1 + sigma^2) if variance preserving) at the nearest timestep; a flow, whose
first sigma would be infinite, starts at 4096.
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
        s_churn: total churn, divided evenly among the steps; 0 is deterministic.
        s_noise: standard deviation of the churn noise.
        s_tmin, s_tmax: range of sigma with churn; null for no upper limit.
        timestep_spacing: "sgm", as in SUPIR's release, "leading", "linspace" or "trailing" (see spacing.py).
        steps_offset: added to the timesteps of "leading".
    """

    s_churn: NonNegative
    s_noise: NonNegative
    s_tmin: float
    s_tmax: float | None
    timestep_spacing: Literal["sgm", "leading", "linspace", "trailing"] = "sgm"
    steps_offset: int = 0

    def gamma(self, sigma: float) -> float:
        """The relative increase of a step's noise level by churn (Karras et al. 2022, Algorithm 2, line 5)."""
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
            sigma, next_sigma = level.sigma, level.next_sigma
            sigma_hat = sigma * (1 + self.gamma(sigma))  # SUPIR, Algorithm 1, lines 4 and 5
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
            # SUPIR, Algorithm 1, lines 7 and 8
            x_BCHW = x_BCHW + (next_sigma - sigma_hat) / sigma_hat * (x_BCHW - x0_BCHW)
            if self.fidelity.edits_step:
                alpha = 1.0 if next_sigma == 0 else _alpha(schedule, float(times[i + 1]))
                z_BCHW = self.fidelity.after_step(alpha * x_BCHW, centre_BCHW=centre_BCHW, level=level)
                x_BCHW = z_BCHW / alpha
        return x_BCHW

    def _denoised(
        self, predict: Predict, x_BCHW: Tensor, sigma: float, *, level: Level, steer: Steer, schedule: Schedule
    ) -> tuple[Tensor, Tensor | None]:
        """D(x, sigma), with the model at the timestep of the nearest sigma, and the adaptor's preview."""
        t = schedule.time_of(sigma)
        z_BCHW = x_BCHW * _alpha(schedule, t)
        t_B = torch.full((len(x_BCHW),), t)
        t_B = (t_B.long() if isinstance(schedule, VariancePreserving) else t_B).to(x_BCHW.device)
        sync(z_BCHW)  # as in loop.py
        prediction = predict(z_BCHW, t_B, level, steer)
        sync(prediction.out_BCHW)
        return schedule.to_x0(prediction.out_BCHW, z_BCHW, t_B), prediction.preview_BCHW


def _alpha(schedule: Schedule, t: float) -> float:
    """alpha(t), with a floor for pure noise."""
    return max(float(schedule.alpha(t).double()), ALPHA_FLOOR)
