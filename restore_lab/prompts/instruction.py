"""The instruction slot: SPIRE's restoration prompt c_r (section 3.4, Table 2). `prompt/instruction=from_recipe|...`.

A source maps a batch to one text per image: "Deblur with sigma 2.4; Denoise with sigma 0.06", "Deblur; Denoise",
"Remove all degradation", or the empty string. `FixedText` and `NoText` (semantic.py) are instruction sources too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from restore_lab.config.kinds import Share
from restore_lab.config.validate import check_arguments
from restore_lab.random import uniform
from restore_lab.types import REMOVE_ALL

if TYPE_CHECKING:
    from restore_lab.types import Batch, Recipe


@check_arguments
class FromRecipe:
    """The true degradation of each image, with its parameters or by type only.

    Args:
        values: probability that an instruction has the parameters, not only the types. The paper trains with both
            forms, in unspecified proportions, and evaluates with parameters (values=1).
        unknown: instruction for an image without a recipe (a real photograph, a real pair); null is an error.
    """

    def __init__(self, *, values: Share, unknown: str | None = None) -> None:
        self.values, self.unknown = values, unknown

    def __call__(self, batch: Batch) -> tuple[str, ...]:
        coins = uniform(batch.seed, "instruction values").tolist()
        triples = zip(batch.recipe, coins, batch.key, strict=True)
        return tuple(self._instruction(recipe, coin, key) for recipe, coin, key in triples)

    def _instruction(self, recipe: Recipe | None, coin: float, key: str) -> str:
        if recipe is None and self.unknown is not None:
            return self.unknown
        if recipe is None:
            raise ValueError(
                f"{key}: no recipe says what was done to this image, so no instruction can be made from it; "
                "use prompt/instruction=blind or prompt/instruction=fixed prompt.instruction.text=..."
            )
        return recipe.instruction(values=coin < self.values)


class Blind:
    """The instruction "Remove all degradation" for every image: SPIRE's blind mode."""

    def __call__(self, batch: Batch) -> tuple[str, ...]:
        return (REMOVE_ALL,) * len(batch)


class UserInstruction:
    """The user's instruction for each image (its recipe, parsed by degradation/instruction.py), or a default.

    Args:
        text: instruction for an image without one of its own.
    """

    def __init__(self, *, text: str) -> None:
        self.text = text

    def __call__(self, batch: Batch) -> tuple[str, ...]:
        return tuple(self.text if recipe is None else recipe.instruction() for recipe in batch.recipe)
