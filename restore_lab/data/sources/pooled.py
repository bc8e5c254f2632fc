"""The union of several sources: `data=df2k`, `eval_data=real_pairs`.

DF2K, the usual training set, is DIV2K and Flickr2K; InstantIR tests on RealSR and DRealSR as one set. A key is
"<part>/<key>". For probabilities other than the sources' sizes see mixed.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from restore_lab.data.dataset import Source, header_of
from restore_lab.data.image_io import Header
from restore_lab.types import Picture


class PooledSource:
    """The concatenation of sources.

    Args:
        sources: by name.

    Raises:
        ValueError: if there are none.
    """

    def __init__(self, *, sources: Mapping[str, Source]) -> None:
        if not sources:
            raise ValueError("data.sources: a pool needs at least one part")
        self._names, self._sources = tuple(sources), tuple(sources.values())
        self._ends = np.cumsum([len(source) for source in self._sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def keys(self) -> list[str]:
        """One key per image, prefixed with the name of its source."""
        listed = zip(self._names, (source.keys() for source in self._sources), strict=True)
        return [f"{name}/{key}" for name, keys in listed for key in keys]

    def header(self, index: int) -> Header | None:
        """An image's size, without decoding it."""
        part, place = self._place(index)
        return header_of(self._sources[part], place)

    def read(self, index: int, *, epoch: int = 0) -> Picture:
        """Decode one image or pair; its key is prefixed with the name of its source.

        Raises:
            BadImage: the file cannot be read.
        """
        part, place = self._place(index)
        picture = self._sources[part].read(place, epoch=epoch)
        return replace(picture, key=f"{self._names[part]}/{picture.key}")

    def _place(self, index: int) -> tuple[int, int]:
        """The source of an image, and its index there."""
        part = int(np.searchsorted(self._ends, index, side="right"))
        return part, index - int(self._ends[part] - len(self._sources[part]))
