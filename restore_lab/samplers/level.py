"""Where a step of sampling stands: its noise in units of the signal, sigma / alpha (EDM, Karras et al. 2022).

For SD's and SDXL's schedules sigma / alpha runs from 0.03 to 14.61; with zero terminal SNR and on a flow it has no end
and is cut at 4096, where diffusers cuts it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor

from restore_lab.config.kinds import NonNegative, Share

if TYPE_CHECKING:
    from restore_lab.backbones.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Level:
    """One step: `sigma` is the noise now, `following` after it (0 at the end).

    `share` is the noise in units of its top: sigma / top, or s on a flow. `done` is the share of the steps before this
    one (0 at the first of T, (T - 1) / T at the last), `left` the share after it. `raised` is the level at which the
    model is evaluated, where the sampler raises the noise for it (churn); None where that is this level.
    """

    sigma: float
    following: float
    share: float
    left: float = 0.0
    done: float = 0.0
    raised: Level | None = None

    def at_model(self) -> Level:
        """The level at which the model is evaluated."""
        return self.raised or self

    def raise_to(self, sigma: float, *, schedule: Schedule) -> Level:
        """This level with the model evaluated at `sigma`, which may lie above the schedule's top."""
        return replace(self, raised=replace(self, sigma=sigma, share=schedule.share_of(sigma)))


class Linear:
    """A number that moves linearly with the noise, from `start` at the schedule's top to `end` at none.

    Above the top, where churn takes the model, it goes on along the same line (SUPIR's release).
    """

    def __init__(self, *, start: NonNegative, end: NonNegative) -> None:
        self.start, self.end = float(start), float(end)

    def __call__(self, level: Level) -> float:
        return self.end + (self.start - self.end) * level.share


class Until:
    """1 for a share of the steps, then 0: InstantIR's creative restoration (section 3.3).

    Args:
        share: of the steps, the first ones, in [0, 1].
    """

    def __init__(self, *, share: Share) -> None:
        self.share = float(share)

    def __call__(self, level: Level) -> float:
        return float(1 - level.left <= self.share + 1e-9)


def levels(schedule: Schedule, timesteps: Tensor) -> list[Level]:
    """The levels of descending timesteps, which may lie between integers."""
    steps = len(timesteps)
    return [
        Level(sigma=sigma, following=after, share=share, left=(steps - 1 - i) / steps, done=i / steps)
        for i, ((sigma, after), share) in enumerate(
            zip(
                pairwise([*schedule.ratio(timesteps).tolist(), 0.0]),
                schedule.share(timesteps).tolist(),
                strict=True,
            )
        )
    ]
