"""Condition dropout in training. `prompt/dropout=independent|joint|visual|none`.

Each sample's texts are dropped (replaced by the empty string) by random numbers from the sample's own seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from restore_lab.config.kinds import Share
from restore_lab.config.validate import check_arguments
from restore_lab.random import uniform

if TYPE_CHECKING:
    from restore_lab.types import Batch


@check_arguments
class Dropout:
    """Condition dropout per sample: of each slot independently (SPIRE: semantic 0.1, instruction 0), or of all at once.

    Args:
        semantic: probability for the semantic slot.
        instruction: probability for the instruction slot.
        together: probability that all slots are dropped, drawn independently of the others.
        visual: probability for the visual slot, which then has the features of a black image (InstantIR).
    """

    def __init__(self, *, semantic: Share, instruction: Share, together: Share = 0.0, visual: Share = 0.0) -> None:
        self.p = {"semantic": semantic, "instruction": instruction, "visual": visual}
        self.together = together

    def __call__(self, texts: tuple[str, ...], batch: Batch, *, slot: str) -> tuple[str, ...]:
        """The texts of a slot ("semantic" or "instruction"), the dropped ones empty."""
        return tuple("" if drop else text for drop, text in zip(self.mask(batch, slot=slot), texts, strict=True))

    def mask(self, batch: Batch, *, slot: str) -> list[bool]:
        """Whether a slot is dropped, per image."""
        own, shared = (uniform(batch.seed, f"dropout {name}").tolist() for name in (slot, "together"))
        return [a < self.p[slot] or b < self.together for a, b in zip(own, shared, strict=True)]
