"""Checks free disk space and write access before a run begins."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from restore_lab.system.faults import short_name

GIB = 2**30
MAX_NAME_BYTES = 255  # bytes of a file's name, of most file systems


def require(folder: str | Path, *, needed: int, what: str) -> None:
    """Refuse a folder without write access, or a disk with too little free space.

    Args:
        folder: the output folder, which need not exist yet.
        needed: total size in bytes.
        what: the kind of content, for messages.

    Raises:
        ValueError: with the needed and the free space.
    """
    place = writable_folder(folder)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ValueError(
            f"{folder}: {what} take about {format_bytes(needed)}, and {format_bytes(free)} are free; free some, or "
            "choose another disk"
        )


def writable_folder(folder: str | Path) -> Path:
    """The folder, or its nearest existing parent, checked for write access.

    Raises:
        ValueError: if a file or a broken link is in the way, a name is too long, or there is no write access.
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
    """Refuse a path with a name that is too long for a file system.

    Raises:
        ValueError: with the path.
    """
    if any(len(os.fsencode(name)) > MAX_NAME_BYTES for name in Path(place).parts):
        raise ValueError(f"{short_name(place)}: a name of more than {MAX_NAME_BYTES} bytes; give a shorter one")


def format_bytes(count: int) -> str:
    """A size in bytes as text: "3.20 GiB"."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 100 else f"{count / 2**20:.1f} MiB"
