"""Writing photographs atomically, with profile and EXIF: 8 bits by Pillow, 16 bits by pypng and tifffile.

JPEG has no transparency (it is composited on white) and, like WebP, no 16 bits; a 16-bit TIFF has no EXIF.
"""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from restore_lab.data.photograph import WRITABLE_SUFFIXES, Photograph
from restore_lab.storage.atomic import write_bytes_atomic

ALPHA = frozenset(("png", "webp", "tiff"))
DEEP = frozenset(("png", "tiff"))
PILLOW_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def write_photograph(path: str | Path, photograph: Photograph, *, quality: int = 95) -> None:
    """Write in the format of the suffix (.png, .jpg, .webp, .tif), with profile and EXIF, atomically.

    Args:
        path: of the file.
        photograph: to write.
        quality: of JPEG and WebP, 1 to 100.

    Raises:
        ValueError: for another suffix.
    """
    write_bytes_atomic(path, encode_photograph(photograph, Path(path), quality=quality))


def encode_photograph(photograph: Photograph, path: Path, *, quality: int = 95) -> bytes:
    """Encode in the format of the path's suffix.

    Raises:
        ValueError: for another suffix.
    """
    kinds = {f".{kind}": kind for kind in WRITABLE_SUFFIXES}
    kinds |= {suffix: kind for kind, suffix in WRITABLE_SUFFIXES.items()}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path}: cannot write {path.suffix or 'a name without suffix'}; one of {', '.join(kinds)}")
    if photograph.levels > 255 and kind in DEEP:
        return _deep_png(photograph) if kind == "png" else _deep_tiff(photograph)
    return _shallow(photograph, kind, quality)


def _shallow(photograph: Photograph, kind: str, quality: int) -> bytes:
    """8 bits per channel, by Pillow."""
    planes = _channels(photograph)
    if photograph.levels > 255:
        planes = np.rint(planes / 257).astype(np.uint8)
    image = Image.fromarray(planes[..., 0] if planes.shape[2] == 1 else planes, PILLOW_MODES[planes.shape[2]])
    if image.mode in ("LA", "RGBA") and kind not in ALPHA:
        whole = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert(image.mode[:-1])
    if kind == "webp" and image.mode in ("L", "LA"):
        image = image.convert("RGB" if image.mode == "L" else "RGBA")
    file = io.BytesIO()
    kept: dict[str, Any] = {"exif": photograph.exif} if photograph.exif else {}
    if kind in ("jpeg", "webp"):
        kept["quality"] = quality
    if kind == "jpeg":
        kept["subsampling"] = 0
    if kind == "tiff" and not photograph.exif:  # Pillow cannot write EXIF to a compressed TIFF
        kept["compression"] = "tiff_adobe_deflate"
    image.save(file, format=kind.upper(), icc_profile=photograph.profile or None, **kept)
    return file.getvalue()


def _deep_png(photograph: Photograph) -> bytes:
    """16 bits per channel, by pypng, with the ICC and EXIF chunks, which it does not write."""
    import png

    planes = _channels(photograph)
    height, width, count = planes.shape
    file, whole = io.BytesIO(), io.BytesIO()
    writer = png.Writer(width, height, bitdepth=16, greyscale=count < 3, alpha=count in (2, 4), compression=6)
    writer.write_packed(file, (row.astype(">u2").tobytes() for row in planes.reshape(height, -1)))
    file.seek(0)
    header, *others = png.Reader(file=file).chunks()
    own = []
    if photograph.profile:
        own.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(photograph.profile)))
    if photograph.exif:
        own.append((b"eXIf", photograph.exif.removeprefix(b"Exif\0\0")))
    png.write_chunks(whole, [header, *own, *others])
    return whole.getvalue()


def _deep_tiff(photograph: Photograph) -> bytes:
    """16 bits per channel, by tifffile."""
    import tifffile

    planes = _channels(photograph)
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        planes[..., 0] if planes.shape[2] == 1 else planes,
        photometric="minisblack" if planes.shape[2] < 3 else "rgb",
        planarconfig="contig" if planes.shape[2] > 1 else None,
        extrasamples=["unassalpha"] if planes.shape[2] in (2, 4) else None,
        compression="zlib",
        iccprofile=photograph.profile or None,
        metadata=None,
    )
    return file.getvalue()


def _channels(photograph: Photograph) -> np.ndarray:
    """The channels of the file: grey or RGB, with or without alpha."""
    colours = photograph.rgb_HWC[..., :1] if photograph.grey else photograph.rgb_HWC
    return colours if photograph.alpha_HW is None else np.concatenate([colours, photograph.alpha_HW[..., None]], axis=2)
