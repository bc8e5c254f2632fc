"""The EDM sampler with churn, first order. `sampler=edm` (SUPIR, Algorithm 1; Karras et al. 2022, Algorithm 2).

In x = z / alpha a noise level is sigma = sigma_t / alpha_t. Each step raises the noise, x_hat = x + s_noise n
sqrt(sigma_hat^2 - sigma^2) with sigma_hat = (1 + gamma) sigma, evaluates the model at sigma_hat, and takes Euler's step
from there. diffusers' Euler scheduler evaluates at the level before raising; this one is ours for that reason.
The prior sees variance-preserving latents z = x / sqrt(1 + sigma^2) at its nearest timestep, whose sigma then counts.
Shapes: latents (B, C, h, w).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from restore_lab.random import noise_like
from restore_lab.samplers.level import Level, edm_sigmas
from restore_lab.samplers.loop import Predict, Sampler

if TYPE_CHECKING:
    from restore_lab.backbones.schedule import Schedule


def ddpm_timesteps(*, count: int, steps: int) -> list[int]:
    """`steps` of `count` timesteps, evenly from the last one down, the lowest left out (the release's spacing)."""
    return torch.linspace(count - 1, 0, steps + 1, dtype=torch.float64)[:-1].long().tolist()


@dataclass(kw_only=True, eq=False)
class EdmSampler(Sampler):
    """Euler steps with churn.

    Args:
        s_churn: noise raised in all, shared over the steps; 0 is deterministic.
        s_noise: deviation of the noise put in.
        s_tmin, s_tmax: sigmas between which noise is raised; null for no upper end.
    """

    s_churn: float
    s_noise: float
    s_tmin: float
    s_tmax: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.s_churn < 0 or self.s_noise < 0:
            raise ValueError(f"sampler.s_churn={self.s_churn} and s_noise={self.s_noise} must not be negative")

    def gamma(self, sigma: float) -> float:
        """By how much of itself the noise of a step is raised (Karras et al., Algorithm 2, line 5)."""
        inside = self.s_tmin <= sigma <= (math.inf if self.s_tmax is None else self.s_tmax)
        return min(self.s_churn / self.steps, math.sqrt(2) - 1) if inside else 0.0

    @torch.no_grad()
    def __call__(
        self, predict: Predict, lq_latent_BCHW: Tensor, *, centre_BCHW: Tensor, seeds: Sequence[int], schedule: Schedule
    ) -> Tensor:
        table = edm_sigmas(schedule)
        timesteps = ddpm_timesteps(count=len(table), steps=self.steps)
        sigmas, top = [*table[timesteps].tolist(), 0.0], float(table[-1])
        x_BCHW = self.init(lq_latent_BCHW, seeds=seeds, t=timesteps[0], schedule=schedule)
        x_BCHW = x_BCHW * math.sqrt(1 + sigmas[0] ** 2)
        for i in self.bar(range(self.steps)):
            sigma, following = sigmas[i], sigmas[i + 1]
            sigma_hat = sigma * (1 + self.gamma(sigma))
            if sigma_hat > sigma:
                noise_BCHW = noise_like(x_BCHW, seeds, f"churn {i}")
                x_BCHW = x_BCHW + self.s_noise * math.sqrt(sigma_hat**2 - sigma**2) * noise_BCHW
            level = Level(sigma=sigma, following=following, top=top)
            x0_BCHW = self._denoised(predict, x_BCHW, sigma_hat, level=level, schedule=schedule, table=table)
            x0_BCHW = self.fidelity.on_x0(x0_BCHW, centre_BCHW=centre_BCHW, level=level)
            x_BCHW = x_BCHW + (following - sigma_hat) / sigma_hat * (x_BCHW - x0_BCHW)
        return x_BCHW

    def _denoised(
        self, predict: Predict, x_BCHW: Tensor, sigma: float, *, level: Level, schedule: Schedule, table: Tensor
    ) -> Tensor:
        """D(x, sigma), the model asked at the timestep whose sigma is nearest."""
        t = int((table - sigma).abs().argmin())
        z_BCHW = x_BCHW / math.sqrt(1 + float(table[t]) ** 2)
        t_B = torch.full((len(x_BCHW),), t, device=x_BCHW.device)
        return schedule.to_x0(predict(z_BCHW, t_B, level), z_BCHW, t_B)
