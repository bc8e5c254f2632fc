"""Pairs labelled with a kind of degradation: each gets a recipe of one step without parameters.

Diff-Restorer's classifier is trained on recipes, which real pairs (LOL, GoPro, ...) lack. A training batch may have
both labelled pairs and images that are yet to be degraded. Used by `data=diff_restorer_train`.
"""

from __future__ import annotations

from dataclasses import replace

from restore_lab.data.dataset import Source, header_of
from restore_lab.data.image_io import Header
from restore_lab.types import Picture, Recipe, Step


class LabelledPairs:
    """A source of pairs with a recipe of one kind of degradation.

    Args:
        source: the pairs.
        kind: of the step in the recipe (`restore_lab.degradation.vocabulary.NAMES`): haze, rain, motion_blur, ...
    """

    def __init__(self, *, source: Source, kind: str) -> None:
        self._source, self._recipe = source, Recipe(pipeline="pairs", seed=0, steps=(Step(kind=kind),))

    def __len__(self) -> int:
        return len(self._source)

    def keys(self) -> list[str]:
        """The keys of the source."""
        return self._source.keys()

    def header(self, index: int) -> Header | None:
        """An image's size, without decoding it."""
        return header_of(self._source, index)

    def read(self, index: int, *, epoch: int = 0) -> Picture:
        """Decode one pair, with the recipe.

        Raises:
            BadImage: a file cannot be read.
            ValueError: the source has no pairs.
        """
        picture = self._source.read(index, epoch=epoch)
        if picture.lq_HWC is None or picture.hq_HWC is None:
            raise ValueError(f"{picture.key}: only pairs can be labelled; an image alone gets its recipe when degraded")
        return replace(picture, recipe=self._recipe)
