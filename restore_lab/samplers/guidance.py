"""Classifier-free guidance as a list of weighted branches. `sampler/guidance=cfg`, `sampler.guidance.scale=...`.

Each branch is (weight, condition, hint) and the guided prediction is the weighted sum of the branches'; the weights sum
to one. SPIRE section 3.1: null + w (cond - null), so the condition weighs w and the null 1 - w.
"""

from __future__ import annotations

from dataclasses import dataclass

from restore_lab.types import Cond, Hint


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One evaluation of the model within a step."""

    weight: float
    cond: Cond
    hint: Hint


class ClassifierFree:
    """Guidance by the semantic text.

    Args:
        scale: w; 1 evaluates the conditional branch alone.
    """

    def __init__(self, *, scale: float) -> None:
        self.scale = float(scale)

    def branches(self, *, cond: Cond, null: Cond, hint: Hint) -> tuple[Branch, ...]:
        """The branches of a step; both see the same hint."""
        if self.scale == 1.0 or null is cond:  # without words there is nothing to guide towards
            return (Branch(weight=1.0, cond=cond, hint=hint),)
        return (
            Branch(weight=self.scale, cond=cond, hint=hint),
            Branch(weight=1.0 - self.scale, cond=null, hint=hint),
        )
