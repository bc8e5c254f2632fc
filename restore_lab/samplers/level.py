"""The noise level of a sampling step, sigma / alpha (the sigma of EDM, Karras et al. 2022).

For SD's and SDXL's schedules sigma / alpha ranges from 0.03 to 14.61; with zero terminal SNR and for flows it is
unbounded, and clamped to 4096 as in diffusers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from restore_lab.backbones.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Level:
    """One step.

    Attributes:
        sigma: the noise level before the step.
        next_sigma: the noise level after the step, 0 for the last.
        share: sigma as a fraction of the schedule's maximum, or s for a flow; in [0, 1], larger only with churn.
        remaining: fraction of the steps after this one, (T - 1) / T in the first of T steps and 0 in the last.
        progress: fraction of the steps before this one, 0 in the first of T steps and (T - 1) / T in the last.
        churn_level: the level at which the model is evaluated, with the noise that churn adds; None without churn.
    """

    sigma: float
    next_sigma: float
    share: float
    remaining: float = 0.0
    progress: float = 0.0
    churn_level: Level | None = None

    def at_model(self) -> Level:
        """The level at which the model is evaluated."""
        return self.churn_level or self

    def raise_to(self, sigma: float, *, schedule: Schedule) -> Level:
        """This level with the model evaluated at `sigma`, which may be above the schedule's maximum."""
        return replace(self, churn_level=replace(self, sigma=sigma, share=schedule.share_of(sigma)))


def levels(schedule: Schedule, timesteps: Tensor) -> list[Level]:
    """The levels of descending timesteps, which may be fractional."""
    steps = len(timesteps)
    return [
        Level(sigma=sigma, next_sigma=after, share=share, remaining=(steps - 1 - i) / steps, progress=i / steps)
        for i, ((sigma, after), share) in enumerate(
            zip(
                pairwise([*schedule.ratio(timesteps).tolist(), 0.0]),
                schedule.share(timesteps).tolist(),
                strict=True,
            )
        )
    ]
