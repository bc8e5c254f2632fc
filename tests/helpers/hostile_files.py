"""A hostile folder: odd images that are sound, and files that are not images."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from restore_lab.data.photograph import Photograph
from restore_lab.data.photograph_file import write_photograph


def drawn(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    top = int(np.iinfo(dtype).max)
    return np.random.default_rng(sum(shape)).integers(0, top + 1, shape, dtype=dtype)


def saved(image: Image.Image, kind: str, **how: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **how)
    return file.getvalue()


def rgb(height: int = 16, width: int = 20) -> Image.Image:
    return Image.fromarray(drawn(height, width, 3))


def png_of(width: int, height: int, *, data: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    """A PNG whose header says what it likes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def deep(channels: int) -> Photograph:
    planes = drawn(14, 16, channels, dtype=np.uint16)
    grey = channels < 3
    colours = np.repeat(planes[..., :1], 3, axis=2) if grey else planes[..., :3]
    return Photograph(rgb_HWC=colours, alpha_HW=planes[..., -1] if channels in (2, 4) else None, grey=grey)


def broken_exif() -> bytes:
    return saved(rgb(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40)


def tiff(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array)
    return file.getvalue()


def frames(kind: str) -> bytes:
    others = [Image.fromarray(drawn(16, 16, 3)) for _ in range(2)]
    return saved(rgb(16, 16), kind, save_all=True, append_images=others)


# By name: what the file holds. These are to be restored.
GOOD: dict[str, Callable[[], bytes]] = {
    "plain.jpg": lambda: saved(rgb(), "JPEG"),
    "plain.png": lambda: saved(rgb(), "PNG"),
    "plain.webp": lambda: saved(rgb(), "WEBP"),
    "plain.avif": lambda: saved(rgb(), "AVIF"),
    "plain.tif": lambda: saved(rgb(), "TIFF"),
    "plain.bmp": lambda: saved(rgb(), "BMP"),
    "plain.tga": lambda: saved(rgb(), "TGA"),
    "plain.jp2": lambda: saved(rgb(64, 64), "JPEG2000"),
    "plain.ppm": lambda: saved(rgb(), "PPM"),
    "plain.qoi": lambda: saved(rgb(), "QOI"),
    "progressive.jpg": lambda: saved(rgb(), "JPEG", progressive=True),
    "grey.jpg": lambda: saved(Image.fromarray(drawn(15, 17)), "JPEG"),
    "bits.png": lambda: saved(Image.fromarray(drawn(15, 17) > 100), "PNG"),
    "palette.png": lambda: saved(rgb().quantize(7), "PNG"),
    "palette transparent.gif": lambda: saved(rgb().quantize(7), "GIF", transparency=1),
    "opacity.png": lambda: saved(Image.fromarray(drawn(16, 16, 4), "RGBA"), "PNG"),
    "opacity.webp": lambda: saved(Image.fromarray(drawn(16, 16, 4), "RGBA"), "WEBP"),
    "inks.jpg": lambda: saved(rgb().convert("CMYK"), "JPEG"),
    "inks.tif": lambda: saved(rgb().convert("CMYK"), "TIFF"),
    "luma.jpg": lambda: saved(rgb().convert("YCbCr"), "JPEG"),
    "deep grey.png": lambda: saved(Image.fromarray(drawn(15, 17, dtype=np.uint16)), "PNG"),
    "float.tif": lambda: tiff(drawn(15, 17).astype(np.float32) / 255),
    "deep.tif": lambda: tiff(drawn(16, 18, 3, dtype=np.uint16)),
    "animated.gif": lambda: frames("GIF"),
    "pages.tif": lambda: frames("TIFF"),
    "animated.webp": lambda: frames("WEBP"),
    "one pixel.png": lambda: saved(rgb(1, 1), "PNG"),
    "line.png": lambda: saved(rgb(1, 37), "PNG"),
    "column.png": lambda: saved(rgb(41, 1), "PNG"),
    "broken exif.jpg": broken_exif,
    "trailing rubbish.jpg": lambda: saved(rgb(), "JPEG") + b"rubbish" * 100,
    "wrong suffix.png": lambda: saved(rgb(), "JPEG"),
    "SHOUTED.JPG": lambda: saved(rgb(), "JPEG"),
    "two words, a comma.jpg": lambda: saved(rgb(), "JPEG"),
    "quote's.jpg": lambda: saved(rgb(), "JPEG"),
    "[brackets] {x} ${y}.jpg": lambda: saved(rgb(), "JPEG"),
    "\u732b\U0001f63a.jpg": lambda: saved(rgb(), "JPEG"),
    "-rf.jpg": lambda: saved(rgb(), "JPEG"),
    "new\nline.jpg": lambda: saved(rgb(), "JPEG"),
    "a" * 250 + ".jpg": lambda: saved(rgb(), "JPEG"),
    "below/deeper/same.jpg": lambda: saved(rgb(), "JPEG"),
    "below/same.jpg": lambda: saved(rgb(18, 16), "JPEG"),
    "same.jpg": lambda: saved(rgb(20, 16), "JPEG"),
    "same.png": lambda: saved(rgb(22, 16), "PNG"),
}
# By name: what the file holds, and a part of the reason that is given.
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.png": (lambda: b"", "empty file"),
    "text.jpg": (lambda: b"hello, I am a text\n", "text, not an image"),
    "noise.png": (lambda: bytes(range(256)) * 4, "not an image"),
    "pointer.png": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "cut.png": (lambda: saved(rgb(64, 64), "PNG")[:900], "trunc"),
    "cut.jpg": (lambda: saved(rgb(64, 64), "JPEG")[:700], "trunc"),
    "bomb.png": (lambda: png_of(60_000, 60_000), "exceeds the limit"),
    "wide.png": (lambda: png_of(100_000, 2_000), "exceeds the limit"),
    "lies.png": (lambda: png_of(500, 500, data=b"\0" * 10), ""),
    "nothing.png": (lambda: png_of(0, 0), ""),
    "wild.tif": (lambda: tiff(drawn(9, 9).astype(np.float32)), "expected 0 to 1"),
    "negative.tif": (lambda: tiff(-drawn(9, 9).astype(np.int32)), "expected 0 to 65535"),
    "nan.tif": (lambda: tiff(np.full((9, 9), np.nan, np.float32)), "expected 0 to 1"),
    "page.png": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "not an image"),
    "script.png": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", "not an image"),
    "zip.png": (lambda: b"PK\x03\x04" + b"\0" * 60, "not an image"),
    "large.png": (lambda: saved(Image.new("RGB", (300, 300)), "PNG"), "more than max_pixels"),
}


def make(folder: Path) -> None:
    """Write all of it, and what is not a file: links to nowhere, in a circle and to a device, a pipe, a folder named as
    an image.
    """
    for name, what in GOOD.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(what())
    write_photograph(folder / "deep.png", deep(3))
    write_photograph(folder / "deep opacity.png", deep(4))
    for name, (what, _) in BAD.items():
        (folder / name).write_bytes(what())
    os.symlink(folder / "nowhere.png", folder / "link.png")
    os.symlink(folder, folder / "circle")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    os.symlink("/dev/zero", folder / "zero.png")
    (folder / "._plain.jpg").write_bytes(b"what a Mac leaves")
