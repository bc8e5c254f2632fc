"""Several sources as one, each picture from one of them by its share. `data=mixed data.sources.x=...`.

SUPIR mixes images of negative quality, captioned by the negative prompt, into its training (section 3.2). Which source
a picture comes from depends on epoch and index alone, so that workers and ranks change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from restore_lab.data.dataset import Source
from restore_lab.random import mix, rng
from restore_lab.types import Picture


class MixedSource:
    """Named sources with shares that need not sum to 1; as long as the first.

    Args:
        sources: the parts.
        shares: how often each is drawn.

    Raises:
        ValueError: if the names differ, or the shares cannot be probabilities.
    """

    def __init__(self, *, sources: Mapping[str, Source], shares: Mapping[str, float]) -> None:
        if not sources or set(sources) != set(shares):
            raise ValueError(f"data.sources {sorted(sources)} and shares {sorted(shares)} must name the same parts")
        if min(shares.values()) < 0 or sum(shares.values()) <= 0:
            raise ValueError(f"data.shares {dict(shares)} must be 0 or more, and not all 0")
        self._names, self._sources = tuple(sources), dict(sources)
        self._shares = dict(shares)
        self._bounds = np.cumsum([shares[name] for name in self._names])

    def __len__(self) -> int:
        return len(self._sources[self._names[0]])

    def keys(self) -> list[str]:
        """The keys of the pictures that the shares choose in the first epoch, in order."""
        listed = {name: source.keys() for name, source in self._sources.items()}
        return [f"{name}/{listed[name][place]}" for name, place in map(self._place, range(len(self)))]

    def read(self, index: int, *, epoch: int = 0) -> Picture:
        """The picture of the source that this epoch and index choose.

        Raises:
            BadImage: the file cannot be read.
        """
        name, place = self._place(index, epoch)
        return self._sources[name].read(place, epoch=epoch)

    def parts(self) -> Mapping[str, Source]:
        """The parts by name."""
        return self._sources

    def with_parts(self, parts: Mapping[str, Source]) -> MixedSource:
        """The same mixture of other parts."""
        return MixedSource(sources=parts, shares=self._shares)

    def _place(self, index: int, epoch: int = 0) -> tuple[str, int]:
        """Source and index within it; in the first source the index stays, so that none of it comes twice an epoch."""
        drawn = ("mixed", index, epoch) if epoch else ("mixed", index)
        draw = rng(*drawn).random() * self._bounds[-1]
        name = self._names[int(np.searchsorted(self._bounds, draw, side="right"))]
        first = name == self._names[0]
        return name, index if first else mix(*drawn) % len(self._sources[name])


def captions(*, sources: Mapping[str, Sequence[str]]) -> list[str]:
    """The captions of several sources in one list, for whatever learns from words only."""
    return [caption for part in sources.values() for caption in part]
