"""Where a step of sampling stands: its noise in units of the signal, sigma / alpha (EDM, Karras et al. 2022).

For SD's and SDXL's schedules sigma / alpha runs from 0.03 to 14.61; with zero terminal SNR and on a flow it has no end
and is cut at 4096, where diffusers cuts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from restore_lab.backbones.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Level:
    """One step: `sigma` is the noise now, `following` after it (0 at the end).

    `share` is how far the noise is towards its top, in [0, 1]: sigma / top, or s on a flow. `left` is the share of the
    steps that come after this one: (T - 1) / T at the first of T, 0 at the last.
    """

    sigma: float
    following: float
    share: float
    left: float = 0.0


class Linear:
    """A number that moves linearly with the noise, from `start` at the schedule's top to `end` at none."""

    def __init__(self, *, start: float, end: float) -> None:
        self.start, self.end = float(start), float(end)

    def __call__(self, level: Level) -> float:
        return self.end + (self.start - self.end) * level.share


class Until:
    """1 for a share of the steps, then 0: InstantIR's creative restoration (section 3.3).

    Args:
        share: of the steps, the first ones, in [0, 1].
    """

    def __init__(self, *, share: float) -> None:
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"sampler.strength.share={share} is a share of the steps; give a number from 0 to 1")
        self.share = float(share)

    def __call__(self, level: Level) -> float:
        return float(1 - level.left <= self.share + 1e-9)


def levels(schedule: Schedule, timesteps: Tensor) -> list[Level]:
    """The levels of descending timesteps, which may lie between integers."""
    return [
        Level(sigma=sigma, following=after, share=share, left=left)
        for (sigma, after), share, left in zip(
            pairwise([*schedule.ratio(timesteps).tolist(), 0.0]),
            schedule.share(timesteps).tolist(),
            _left(len(timesteps)),
            strict=True,
        )
    ]


def _left(steps: int) -> Sequence[float]:
    return [(steps - 1 - i) / steps for i in range(steps)]
