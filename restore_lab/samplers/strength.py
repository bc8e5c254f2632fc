"""Numbers that depend on a step's noise level. `sampler/strength=full|linear|until`, `sampler/guidance=linear`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from restore_lab.config.kinds import NonNegative, Share

if TYPE_CHECKING:
    from restore_lab.samplers.level import Level


class Linear:
    """A number that is linear in the noise level, from `start` at the schedule's maximum to `end` at zero noise.

    Churn can take the level above the maximum, where the number is extrapolated (SUPIR's release).
    """

    def __init__(self, *, start: NonNegative, end: NonNegative) -> None:
        self.start, self.end = float(start), float(end)

    def __call__(self, level: Level) -> float:
        return self.end + (self.start - self.end) * level.share


class Until:
    """1 in the first steps, then 0: InstantIR's creative restoration (section 3.3).

    Args:
        share: fraction of the steps, in [0, 1].
    """

    def __init__(self, *, share: Share) -> None:
        self.share = float(share)

    def __call__(self, level: Level) -> float:
        return float(1 - level.remaining <= self.share + 1e-9)
