"""Where a step of sampling stands: its noise in units of the signal, sigma / alpha (EDM, Karras et al. 2022).

For SD's and SDXL's schedules sigma / alpha runs from 0.03 to 14.61; with zero terminal SNR it has no end and is cut at
4096, where diffusers cuts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from restore_lab.backbones.schedule import ALPHA_FLOOR

if TYPE_CHECKING:
    from restore_lab.backbones.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Level:
    """One step's noise: `sigma` now, `following` after it (0 at the end), `top` at the schedule's last timestep."""

    sigma: float
    following: float
    top: float

    @property
    def share(self) -> float:
        """sigma / top, in [0, 1]: 1 where sampling starts."""
        return min(self.sigma / self.top, 1.0)


class Linear:
    """A number that moves linearly with the noise, from `start` at the schedule's top to `end` at none."""

    def __init__(self, *, start: float, end: float) -> None:
        self.start, self.end = float(start), float(end)

    def __call__(self, level: Level) -> float:
        return self.end + (self.start - self.end) * level.share


def edm_sigmas(schedule: Schedule) -> Tensor:
    """sigma / alpha at every timestep, float64, rising."""
    bar = schedule.alphas_cumprod.double()
    return ((1 - bar) / bar.clamp_min(ALPHA_FLOOR**2)).sqrt()


def levels(schedule: Schedule, timesteps: Tensor) -> list[Level]:
    """The levels of descending timesteps, which may lie between integers."""
    table = edm_sigmas(schedule)
    t = timesteps.detach().double().cpu().clamp(0, len(table) - 1)
    low, part = t.floor().long(), t - t.floor()
    between = table[low] + part * (table[(low + 1).clamp(max=len(table) - 1)] - table[low])
    ends = torch.cat([between[1:], between.new_zeros(1)])
    top = float(table[-1])
    return [
        Level(sigma=sigma, following=after, top=top)
        for sigma, after in zip(between.tolist(), ends.tolist(), strict=True)
    ]
