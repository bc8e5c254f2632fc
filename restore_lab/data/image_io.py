"""Reading and writing image files: any file becomes uint8 RGB, height x width x 3, or raises `BadImage`.

16-bit grey is scaled by 1/257 (16-bit colour is truncated to its high byte, an error of at most one level), palettes
are resolved, transparency is composited on white, CMYK is converted without its profile, and the EXIF orientation is
applied. Of animations and multi-page files the first frame is read (frames.py). Colour profiles are not applied.
Shapes: arrays are HWC uint8, tensors CHW float32 in [0, 1].
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from restore_lab.data.frames import DECODER_ERRORS, may_have_more, note_frames
from restore_lab.storage.atomic import write_bytes_atomic
from restore_lab.storage.foreign import NotRegularFile, open_regular

IMAGE_SUFFIXES = frozenset(
    (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".dib")
    + (".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".jpx", ".tga", ".qoi", ".pcx", ".psd", ".ico")
    + (".icns", ".dds", ".sgi", ".ras", ".xbm", ".xpm")
)
# Formats that Pillow decodes itself; others (EPS, WMF) run an external program on an untrusted file.
PILLOW_FORMATS = (
    ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "TGA", "QOI", "PCX", "PSD", "ICO")
    + ("ICNS", "DDS", "SGI", "SUN", "XBM", "XPM")
)  # fmt: skip
MAX_PIXELS = 178_956_970
ORIENTATION = 0x0112
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(ValueError):
    """A file that cannot be read as an image; the message is one line, "path: reason"."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """An image's metadata without decoding: its size in pixels as stored, and its number of frames."""

    height: int
    width: int
    frames: int = 1


def read_header(path: str | Path) -> Header:
    """Read a file's size and count its frames, without decoding it.

    Raises:
        BadImage: the file is missing or not an image.
    """
    try:
        with open_regular(path) as file:
            return decode_header(file, name=path)
    except (OSError, NotRegularFile) as error:
        raise BadImage(_line(path, _reason(error))) from error


def decode_header(file: BinaryIO, *, name: str | Path) -> Header:
    """The header of an open file; `name` is its name in errors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=PILLOW_FORMATS) as image:
                return Header(height=image.height, width=image.width, frames=note_frames(image, name))
    except (*DECODER_ERRORS, Image.DecompressionBombError) as error:
        raise BadImage(_line(name, _reason(error))) from error


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read one file as uint8 RGB.

    Args:
        path: the file; its contents decide the format, not its suffix.
        max_pixels: the largest width x height that is decoded; Pillow's own limit is 178,956,970.

    Returns:
        uint8, height x width x 3, upright.

    Raises:
        BadImage: the file is missing, empty, truncated, not an image, too large, or of an unknown value range.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            return _decoded(file, name=path, size=size, max_pixels=max_pixels)
    except (OSError, NotRegularFile) as error:
        raise BadImage(_line(path, _reason(error))) from error


def decode_image(data: bytes, *, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a file's bytes as `read_image` does; `name` is its name in errors."""
    return _decoded(io.BytesIO(data), name=name, size=len(data), max_pixels=max_pixels)


@contextlib.contextmanager
def open_image(file: BinaryIO, *, name: str | Path, size: int, max_pixels: int) -> Iterator[Image.Image]:
    """A decoded Pillow image of an open file; decoder errors inside the block are raised as `BadImage` too.

    Args:
        file: open for reading.
        name: its name in errors.
        size: its bytes.
        max_pixels: the largest width x height that is decoded.

    Raises:
        BadImage: the file is empty, truncated, not an image, too large, or of an unknown value range.
    """
    try:
        if size == 0:
            raise ValueError("empty file (0 bytes)")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=PILLOW_FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise ValueError(_too_large(f"{image.width} x {image.height} pixels", max_pixels))
                image.load()
                if may_have_more(image):
                    _count(file, name)
                yield image
    except UnidentifiedImageError as error:
        file.seek(0)
        raise BadImage(_line(name, _what_it_is(file.read(256)))) from error
    except Image.DecompressionBombError as error:
        raise BadImage(_line(name, _too_large("it", min(max_pixels, MAX_PIXELS)))) from error
    except DECODER_ERRORS as error:
        raise BadImage(_line(name, _reason(error))) from error


def _decoded(file: BinaryIO, *, name: str | Path, size: int, max_pixels: int) -> np.ndarray:
    with open_image(file, name=name, size=size, max_pixels=max_pixels) as image:
        return np.array(_upright(_to_rgb(image), image))


def write_png(path: str | Path, image_HWC: np.ndarray) -> None:
    """Write uint8 RGB (HWC) or grey (HW) as PNG, atomically.

    Raises:
        ValueError: the array is not uint8 of one of these shapes.
    """
    write_bytes_atomic(path, encode_png(image_HWC))


def encode_png(image_HWC: np.ndarray) -> bytes:
    """Encode uint8 RGB (HWC) or grey (HW) as PNG.

    Raises:
        ValueError: the array is not uint8 of one of these shapes.
    """
    colour = image_HWC.ndim == 3 and image_HWC.shape[2] == 3
    if image_HWC.dtype != np.uint8 or not (colour or image_HWC.ndim == 2):
        raise ValueError(f"expected uint8 HxWx3 or HxW, got {image_HWC.dtype} {image_HWC.shape}")
    file = io.BytesIO()
    Image.fromarray(image_HWC).save(file, format="PNG")
    return file.getvalue()


def resize_image(image_HWC: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Bicubic resize with antialiasing (Pillow), uint8; an image of that size is returned unchanged."""
    if image_HWC.shape[:2] == (height, width):
        return image_HWC
    return np.array(Image.fromarray(image_HWC).resize((width, height), Image.Resampling.BICUBIC))


def to_tensor(image_HWC: np.ndarray) -> Tensor:
    """uint8 HWC as float32 CHW in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image_HWC.transpose(2, 0, 1))).float().div_(255)


def to_image(image_CHW: Tensor) -> np.ndarray:
    """Float CHW in [0, 1] (clamped) as uint8 HWC, rounded to the nearest level; the inverse of `to_tensor`."""
    # Channel by channel: an 8K image is 400 MB of float32, and a second copy is avoided.
    levels = [channel_HW.float().clamp(0, 1).mul_(255).round_().to(torch.uint8) for channel_HW in image_CHW.detach()]
    return torch.stack(levels, dim=-1).cpu().numpy()


def _count(file: BinaryIO, name: str | Path) -> None:
    """Record a file with several frames by opening it again, so that `image` stays at its first."""
    place = file.tell()
    with contextlib.suppress(BadImage):
        file.seek(0)
        decode_header(file, name=name)
    file.seek(place)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_deep_grey(image)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> np.ndarray:
    """16-bit, 32-bit and float grey as uint8 HW."""
    return np.rint(grey_values(image) * 255).astype(np.uint8)


def grey_values(image: Image.Image) -> np.ndarray:
    """16-bit, 32-bit and float grey as float64 HW in [0, 1].

    Raises:
        ValueError: values outside the range of the mode.
    """
    values_HW = np.asarray(image).astype(np.float64)
    low, high = float(values_HW.min()), float(values_HW.max())
    limit = 1.0 if image.mode == "F" else 65535.0
    if not (low >= 0 and high <= limit):
        raise ValueError(f"pixel values {low:g} to {high:g} in mode {image.mode}; expected 0 to {limit:g}")
    return values_HW / limit


def _upright(rgb: Image.Image, source: Image.Image) -> Image.Image:
    """Apply the EXIF orientation of `source`."""
    transpose = exif_transpose(source)
    return rgb if transpose is None else rgb.transpose(transpose)


def exif_transpose(image: Image.Image) -> Image.Transpose | None:
    """The transpose of an image's EXIF orientation; None if it is upright, or its EXIF is missing or broken."""
    try:
        return TRANSPOSES.get(image.getexif().get(ORIENTATION, 1))
    except DECODER_ERRORS:
        return None


def _what_it_is(head: bytes) -> str:
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer instead of the image; fetch it with `git lfs pull`"
    printable = all(byte >= 32 or byte in b"\t\r\n" for byte in head)
    return "text, not an image" if printable else "not an image in any known format, or its header is broken"


def _too_large(what: str, max_pixels: int) -> str:
    return f"{what} exceeds the limit of {max_pixels} pixels (a decompression bomb?); shrink it or raise max_pixels"


def _reason(error: BaseException) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split())


def _line(path: str | Path, reason: str) -> str:
    return f"{path}: {reason}".replace("\n", "\\n")
