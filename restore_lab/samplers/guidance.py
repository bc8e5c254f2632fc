"""Classifier-free guidance as a list of weighted branches. `sampler/guidance=cfg`, `sampler.guidance.scale=...`.

A branch is (weight, condition, hint); the prediction is the weighted sum of the branches' predictions, and the weights
sum to one. Form "standard" is guidance as usual (Ho & Salimans; SPIRE section 3.1; SUPIR's release): null + w (cond -
null). Form "paper" (SUPIR, section 3.2, as printed) is cond + w (cond - null), the standard form at w + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from restore_lab.config.kinds import NonNegative
from restore_lab.types import Cond, Hint

if TYPE_CHECKING:
    from collections.abc import Callable

    from restore_lab.samplers.level import Level


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One evaluation of the model in a step."""

    weight: float
    cond: Cond
    hint: Hint


class ClassifierFree:
    """Classifier-free guidance by the semantic text.

    Args:
        scale: w, a number or a function of the noise level at which the model is evaluated; at a weight of 1 only the
            conditional branch is evaluated.
        form: "standard" or "paper".
    """

    def __init__(
        self, *, scale: NonNegative | Callable[[Level], float], form: Literal["standard", "paper"] = "standard"
    ) -> None:
        self.scale, self.form = scale, form

    def branches(self, *, cond: Cond, null: Cond, hint: Hint, level: Level) -> tuple[Branch, ...]:
        """The branches of a step, all with the same hint."""
        scale = self.scale(level.at_model()) if callable(self.scale) else float(self.scale)
        weight = scale + 1 if self.form == "paper" else scale
        if weight == 1.0 or null is cond:  # without text both branches are the same
            return (Branch(weight=1.0, cond=cond, hint=hint),)
        return (
            Branch(weight=weight, cond=cond, hint=hint),
            Branch(weight=1.0 - weight, cond=null, hint=hint),
        )
