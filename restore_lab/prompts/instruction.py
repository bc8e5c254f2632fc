"""The instruction slot: SPIRE's restoration prompt c_r (section 3.4, Table 2). `prompt/instruction=from_recipe|...`.

A source is called with a batch and gives one text an image: "Deblur with sigma 2.4; Denoise with sigma 0.06",
"Deblur; Denoise", "Remove all degradation", or nothing. `Fixed` and `NoWords` of the semantic slot serve here too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from restore_lab.random import uniform
from restore_lab.types import REMOVE_ALL

if TYPE_CHECKING:
    from restore_lab.types import Batch, Recipe


class FromRecipe:
    """What was really done to each image, with its numbers or by type only.

    Args:
        values: probability that an image's instruction says its numbers; else it names the types alone. The paper
            trains with both forms and does not say how often; it evaluates with numbers (values=1).
        unknown: what is said of an image without a recipe (a real photograph, a pair from elsewhere); null refuses it.
    """

    def __init__(self, *, values: float, unknown: str | None = None) -> None:
        if not 0.0 <= values <= 1.0:
            raise ValueError(f"prompt.instruction.values={values} is a probability; give a number from 0 to 1")
        self.values, self.unknown = values, unknown

    def __call__(self, batch: Batch) -> tuple[str, ...]:
        coins = uniform(batch.seed, "instruction values").tolist()
        triples = zip(batch.recipe, coins, batch.key, strict=True)
        return tuple(self._say(recipe, coin, key) for recipe, coin, key in triples)

    def _say(self, recipe: Recipe | None, coin: float, key: str) -> str:
        if recipe is None and self.unknown is not None:
            return self.unknown
        if recipe is None:
            raise ValueError(
                f"{key}: no recipe says what was done to this image, so no instruction can be made from it; "
                "use prompt/instruction=blind or prompt/instruction=fixed prompt.instruction.text=..."
            )
        return recipe.instruction(values=coin < self.values)


class Blind:
    """The words "Remove all degradation" for every image: SPIRE's blind mode."""

    def __call__(self, batch: Batch) -> tuple[str, ...]:
        return (REMOVE_ALL,) * len(batch)


class Given:
    """What a person says of each image (its recipe, made of their words by degradation/instruction.py), else of all.

    Args:
        text: said of an image for which nothing was said.
    """

    def __init__(self, *, text: str) -> None:
        self.text = text

    def __call__(self, batch: Batch) -> tuple[str, ...]:
        return tuple(self.text if recipe is None else recipe.instruction() for recipe in batch.recipe)
