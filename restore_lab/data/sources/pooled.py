"""Several named sources as one, each picture once: `data=df2k`, `eval_data=real_pairs`.

DIV2K and Flickr2K together are what everybody trains on; InstantIR tests on RealSR and DRealSR as one set. A key is
"<part>/<key>". For shares other than the sources' own sizes see mixed.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from restore_lab.data.dataset import Source, header_of
from restore_lab.data.image_io import Header
from restore_lab.types import Picture


class PooledSource:
    """All pictures of all parts, part after part.

    Args:
        sources: the parts by name.

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
        """One key a picture, behind its part's name."""
        listed = zip(self._names, (source.keys() for source in self._sources), strict=True)
        return [f"{name}/{key}" for name, keys in listed for key in keys]

    def header(self, index: int) -> Header | None:
        """Its part's."""
        part, place = self._place(index)
        return header_of(self._sources[part], place)

    def read(self, index: int, *, epoch: int = 0) -> Picture:
        """The picture at this place of the pool.

        Raises:
            BadImage: the file cannot be read.
        """
        part, place = self._place(index)
        picture = self._sources[part].read(place, epoch=epoch)
        return replace(picture, key=f"{self._names[part]}/{picture.key}")

    def _place(self, index: int) -> tuple[int, int]:
        """The part that a picture is of, and its index there."""
        part = int(np.searchsorted(self._ends, index, side="right"))
        return part, index - int(self._ends[part] - len(self._sources[part]))
