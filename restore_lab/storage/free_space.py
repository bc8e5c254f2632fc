"""Whether there is room for what a run will write, before it begins."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from restore_lab.system.faults import short_name

GIB = 2**30
NAME = 255  # bytes of a file's name, of most file systems


def require(folder: str | Path, *, needed: int, what: str) -> None:
    """Refuse a folder that cannot be written to, or a disk that is too full.

    Args:
        folder: where things will be written; it need not be there yet.
        needed: bytes, all in all.
        what: that they are, for people.

    Raises:
        ValueError: with what is needed and what is free.
    """
    place = writable(folder)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ValueError(
            f"{folder}: {what} take about {size(needed)}, and {size(free)} are free; free some, or choose another disk"
        )


def writable(folder: str | Path) -> Path:
    """The folder, or the nearest one above it that is there, in which it can be made.

    Raises:
        ValueError: if a file or a broken link is in its place or above, a name is too long, or nothing can be written.
    """
    check_names(folder)
    place = Path(folder).expanduser().absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        what = "a file" if place.exists() else "a broken link"
        raise ValueError(f"{place}: {what} is in the way; name another folder, or delete it")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"{place}: cannot be written to; make it writable, or name another folder")
    return place


def check_names(place: str | Path) -> None:
    """Refuse a path with a name in it that no file system takes.

    Raises:
        ValueError: with the path.
    """
    if any(len(os.fsencode(name)) > NAME for name in Path(place).parts):
        raise ValueError(f"{short_name(place)}: a name of more than {NAME} bytes; give a shorter one")


def size(count: int) -> str:
    """Bytes for people: "3.20 GiB"."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 100 else f"{count / 2**20:.1f} MiB"
