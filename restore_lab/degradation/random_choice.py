"""A random choice of degradation pipelines: one is drawn per image by its weight, and draws the recipe.

SPIRE, Algorithm 1: type <- RANDCHOICE(Real-ESRGAN, Param), with equal probability. The recipe has the name of the
chosen pipeline.
`degradation=spire|robust`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from restore_lab.config.kinds import NonNegative
from restore_lab.config.validate import check_arguments
from restore_lab.degradation.apply import Pipeline
from restore_lab.random import mix, rng
from restore_lab.types import Recipe


@check_arguments
class RandomChoice(Pipeline):
    """Pipelines by name, with unnormalised weights.

    Raises:
        ValueError: if the names of pipelines and weights differ, or all weights are 0.
    """

    def __init__(self, *, pipelines: Mapping[str, Pipeline], weights: Mapping[str, NonNegative]) -> None:
        if set(pipelines) != set(weights):
            raise ValueError(f"pipelines {sorted(pipelines)} and weights {sorted(weights)} must name the same parts")
        if not any(weights.values()):
            raise ValueError(f"weights {dict(weights)} must not all be 0")
        self.names = tuple(pipelines)
        self.pipelines = dict(pipelines)
        self.bounds = np.cumsum([weights[name] for name in self.names])

    def draw(self, seed: int, height: int, width: int) -> Recipe:
        """The recipe of the chosen pipeline; its seed is derived, so that choice and recipe are independent."""
        place = rng(seed, "mixture").random() * self.bounds[-1]
        name = self.names[int(np.searchsorted(self.bounds, place, side="right"))]  # SPIRE, Algorithm 1: RANDCHOICE
        return self.pipelines[name].draw(mix(seed, name), height, width)
