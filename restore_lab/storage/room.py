"""Whether there is room for what a run will write, before it begins."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

GIB = 2**30


def require(folder: str | Path, *, needed: int, what: str) -> None:
    """Refuse a folder that cannot be written to, or a disk that is too full.

    Args:
        folder: where things will be written; it need not be there yet.
        needed: bytes, all in all.
        what: that they are, for people.

    Raises:
        ValueError: with what is needed and what is free.
    """
    place = Path(folder).expanduser().absolute()
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        raise ValueError(f"{place}: cannot be written to; let it be, or choose another folder")
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ValueError(
            f"{folder}: {what} take about {size(needed)}, and {size(free)} are free; free some, or choose another disk"
        )


def size(count: int) -> str:
    """Bytes for people: "3.20 GiB"."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 100 else f"{count / 2**20:.1f} MiB"
