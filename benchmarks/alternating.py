"""Two or more sides measured in turn in one process, and what their times say of one another.

The sides take turns, A B B A A B ..., so that whatever else the machine does meets them alike, and what one leaves in
the caches; a ratio is taken within each turn and the median of those ratios is told. Its interval is that of order
statistics: of n turns the k-th smallest and the k-th largest ratio, k as large as leaves 95 % between them whatever the
ratios' distribution is (David & Nagaraja, Order Statistics, section 7.1).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Seconds = Mapping[str, float]  # by what was measured
COVERED = 0.95


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times as fast as the other side: the median over the turns and its interval."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What the interval says: "faster", "slower", or "level" where it holds 1."""
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "level"


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was told; of one thread on a CPU those that it worked for us.

    So a machine with other work on it, which makes one thread wait, does not blur what that thread does.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def alternate(
    sides: Mapping[str, Callable[[], Seconds]], *, turns: int, warmup: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each turn, by what was measured and by side.

    Args:
        sides: each takes its turn and says what its parts took.
        turns: how often each is asked.
        warmup: turns before, which do not count.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for turn in range(-warmup, turns):
        for side, take in sides.items() if turn % 2 else reversed(sides.items()):
            for measure, seconds in take().items():
                if turn >= 0:
                    found.setdefault(measure, {}).setdefault(side, []).append(seconds)
    return found


def speedup(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """How many times as fast ours is, from the seconds of as many turns; above 1 ours takes less."""
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    k = rank(len(ratios))
    return Ratio(value=statistics.median(ratios), low=ratios[k], high=ratios[-1 - k])


def rank(count: int, *, covered: float = COVERED) -> int:
    """How many order statistics may be left out at either end; 0, which covers less than asked, below six turns."""
    tail, k = 0.0, 0
    while 2 * (tail := tail + math.comb(count, k) / 2**count) <= 1 - covered:
        k += 1
    return max(k - 1, 0)
