"""Animations and multi-page files: every reader uses the first frame and records here that there are more.

Records are per process; a worker returns them to the main process (`WorkerResult.frames`). Not counted are an MPO's
previews, a PSD's layers, an ICO's sizes, and reduced copies of a page in a TIFF.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from restore_lab.storage.walk import head

# The errors that Pillow's decoders raise on broken files.
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
ANIMATED = ("PNG", "WEBP", "AVIF")  # these have a flag in the header
PAGED = ("GIF", "TIFF")  # these have to be scanned
SUBFILE, REDUCED = 254, 1  # TIFF tag NewSubfileType, and its bit for a reduced copy of another page
_found: dict[str, int] = {}


def may_have_more(image: Image.Image) -> bool:
    """Whether an opened file may have more than one frame."""
    return image.format in PAGED or (image.format in ANIMATED and bool(getattr(image, "is_animated", False)))


def note_frames(image: Image.Image, name: str | Path) -> int:
    """The number of frames of an opened file; recorded under its name if there are several."""
    count = _count(image) if may_have_more(image) else 1
    if count > 1:
        _found[str(name)] = count
    return count


def take_frames() -> dict[str, int]:
    """Files with several frames, and their number, that this process has read since the last call."""
    found = dict(_found)
    _found.clear()
    return found


def describe_frames(found: Mapping[str, int]) -> str:
    """A line for the log that only first frames are used; empty for no such files."""
    if not found:
        return ""
    what = "1 animation or multi-page file" if len(found) == 1 else f"{len(found)} animations or multi-page files"
    return (
        f"{what}: only the first frame is used ({head([f'{name}: {count} frames' for name, count in found.items()])})"
    )


def _count(image: Image.Image) -> int:
    """The number of frames; 1 if it cannot be determined, since only the first is read."""
    try:
        count: int = getattr(image, "n_frames", 1)
        if not isinstance(image, TiffImageFile) or count == 1:
            return count
        pages = 0
        for number in range(count):
            image.seek(number)
            pages += not image.tag_v2.get(SUBFILE, 0) & REDUCED
        return max(1, pages)
    except DECODER_ERRORS:
        return 1
