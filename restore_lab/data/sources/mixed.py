"""A random mixture of several sources, with a probability per source. `data=mixed data.sources.x=...`.

SUPIR mixes images of negative quality, captioned by the negative prompt, into its training (section 3.2). The source of
an image depends only on epoch and index, not on workers and ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from restore_lab.config.kinds import NonNegative
from restore_lab.config.validate import check_arguments
from restore_lab.data.dataset import Source
from restore_lab.random import mix, rng
from restore_lab.types import Picture


@check_arguments
class MixedSource:
    """A mixture of sources, with the length of the first.

    Args:
        sources: by name.
        shares: unnormalised probability of each source.

    Raises:
        ValueError: if the names differ, or all shares are 0.
    """

    def __init__(self, *, sources: Mapping[str, Source], shares: Mapping[str, NonNegative]) -> None:
        if not sources or set(sources) != set(shares):
            raise ValueError(f"data.sources {sorted(sources)} and shares {sorted(shares)} must name the same parts")
        if not any(shares.values()):
            raise ValueError(f"data.shares {dict(shares)} must not all be 0")
        self._names, self._sources = tuple(sources), dict(sources)
        self._shares = dict(shares)
        self._bounds = np.cumsum([shares[name] for name in self._names])

    def __len__(self) -> int:
        return len(self._sources[self._names[0]])

    def keys(self) -> list[str]:
        """Keys "<source>/<key>" of the images of the first epoch, in order."""
        listed = {name: source.keys() for name, source in self._sources.items()}
        return [f"{name}/{listed[name][place]}" for name, place in map(self._place, range(len(self)))]

    def read(self, index: int, *, epoch: int = 0) -> Picture:
        """Decode the image of this epoch and index, from its randomly drawn source.

        Raises:
            BadImage: the file cannot be read.
        """
        name, place = self._place(index, epoch)
        return self._sources[name].read(place, epoch=epoch)

    def parts(self) -> Mapping[str, Source]:
        """The sources by name."""
        return self._sources

    def with_parts(self, parts: Mapping[str, Source]) -> MixedSource:
        """The same mixture of other sources."""
        return MixedSource(sources=parts, shares=self._shares)

    def _place(self, index: int, epoch: int = 0) -> tuple[str, int]:
        """Source and index within it; the first source keeps the index, so that its images are unique in an epoch."""
        seeds = ("mixed", index, epoch) if epoch else ("mixed", index)
        draw = rng(*seeds).random() * self._bounds[-1]
        name = self._names[int(np.searchsorted(self._bounds, draw, side="right"))]
        first = name == self._names[0]
        return name, index if first else mix(*seeds) % len(self._sources[name])


def join_captions(*, sources: Mapping[str, Sequence[str]]) -> list[str]:
    """The captions of several sources in one list, for training on text only."""
    return [caption for part in sources.values() for caption in part]
