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
from restore_lab.samplers.base import Sampler, Start, SteeredDenoiser
from restore_lab.samplers.level import levels
from restore_lab.samplers.spacing import timesteps

if TYPE_CHECKING:
    from restore_lab.backbones.schedule import Schedule


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

    def sample(self, denoise: SteeredDenoiser, start: Start, *, seeds: Sequence[int], schedule: Schedule) -> Tensor:
        times = timesteps(schedule, self.timestep_spacing, steps=self.steps, offset=self.steps_offset)
        x_BCHW = start(times[0]) / _alpha(schedule, float(times[0]))
        next_alphas = [*(_alpha(schedule, float(t)) for t in times[1:]), 1.0]
        for i, level in enumerate(self.bar(levels(schedule, times))):
            sigma, next_sigma = level.sigma, level.next_sigma
            sigma_hat = sigma * (1 + self.gamma(sigma))  # SUPIR, Algorithm 1, lines 4 and 5
            if sigma_hat > sigma:
                noise_BCHW = noise_like(x_BCHW, seeds, f"churn {i}")
                x_BCHW = x_BCHW + self.s_noise * math.sqrt(sigma_hat**2 - sigma**2) * noise_BCHW
                level = level.raise_to(sigma_hat, schedule=schedule)
            t = _nearest(schedule, sigma_hat)
            x0_BCHW = denoise(x_BCHW * _alpha(schedule, float(t)), t, level)
            # SUPIR, Algorithm 1, lines 7 and 8
            x_BCHW = x_BCHW + (next_sigma - sigma_hat) / sigma_hat * (x_BCHW - x0_BCHW)
            if denoise.edits_step:
                x_BCHW = denoise.after_step(next_alphas[i] * x_BCHW, level) / next_alphas[i]
        return x_BCHW


def _nearest(schedule: Schedule, sigma: float) -> Tensor:
    """The model's timestep with the noise level nearest to sigma, as the prior takes it."""
    t = torch.tensor(schedule.time_of(sigma))
    return t.long() if isinstance(schedule, VariancePreserving) else t


def _alpha(schedule: Schedule, t: float) -> float:
    """alpha(t), with a floor for pure noise."""
    return max(float(schedule.alpha(t).double()), ALPHA_FLOOR)
