"""Animations and multi-page files: every reader takes the first frame, and notes here that there are others.

Notes are of a process: one that reads for another hands them on (`Loaded.frames`). An MPO's further frames are
previews, a PSD's are layers, an ICO's are sizes, and a TIFF may hold smaller copies of a page: none of these count.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from restore_lab.storage.walk import head

# What Pillow's decoders are seen to raise on broken files.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)
ANIMATED = ("PNG", "WEBP", "AVIF")  # these say when they are opened whether there is more
PAGED = ("GIF", "TIFF")  # these are counted through
SUBFILE, REDUCED = 254, 1  # the tag of a TIFF's page, and its bit for a smaller copy of another page
_found: dict[str, int] = {}


def may_have_more(image: Image.Image) -> bool:
    """Whether an opened file can have frames beyond its first."""
    return image.format in PAGED or (image.format in ANIMATED and bool(getattr(image, "is_animated", False)))


def note_frames(image: Image.Image, name: str | Path) -> int:
    """The frames of a file just opened; more than one are noted under its name."""
    count = _count(image) if may_have_more(image) else 1
    if count > 1:
        _found[str(name)] = count
    return count


def take_frames() -> dict[str, int]:
    """The files with several frames that this process has read since it was last asked, and how many they have."""
    found = dict(_found)
    _found.clear()
    return found


def describe_frames(found: Mapping[str, int]) -> str:
    """What is left of such files, in one line; empty for none."""
    if not found:
        return ""
    what = "1 animation or multi-page file" if len(found) == 1 else f"{len(found)} animations or multi-page files"
    return (
        f"{what}: only the first frame is used ({head([f'{name}: {count} frames' for name, count in found.items()])})"
    )


def _count(image: Image.Image) -> int:
    """1 where they cannot be counted: what is broken after the first frame is no concern of its reader."""
    try:
        count: int = getattr(image, "n_frames", 1)
        if image.format != "TIFF" or count == 1:
            return count
        pages = 0
        for number in range(count):
            image.seek(number)
            pages += not image.tag_v2.get(SUBFILE, 0) & REDUCED  # type: ignore[attr-defined]
        return max(1, pages)
    except DECODER_ERRORS:
        return 1
