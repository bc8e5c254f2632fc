"""A photograph with all that a restored file should keep: 8 or 16 bits, transparency, grey, EXIF, colour profile.

`image_io.read_image` reads 8-bit RGB for training; this reads a file without loss. 16-bit colour is read from PNG and
TIFF (uncompressed or deflated; other TIFFs give 8 bits). Pixel values are not converted by the colour profile, which is
kept with them; only CMYK is converted to sRGB, by its profile if it has one. The EXIF orientation is applied and its
tag removed. HWC, uint8 or uint16.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import TiffImageFile

from restore_lab.data.image_io import (
    DECODER_ERRORS,
    MAX_PIXELS,
    ORIENTATION,
    BadImage,
    exif_transpose,
    grey_values,
    open_image,
)
from restore_lab.storage.foreign import NotRegularFile, open_regular

WRITABLE_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif"}  # formats that can be written
EXIF_FOLDER, WIDTH_TAGS, HEIGHT_TAGS = 0x8769, (0x0100, 0xA002), (0x0101, 0xA003)
# The tags of a TIFF that describe the image; the others describe the layout of the file.
TIFF_TAGS = frozenset((270, 271, 272, 282, 283, 296, 305, 306, 315, 33432, 34665, 34853))
BITS_PER_SAMPLE = 258
PNG_MODES = frozenset(("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"))


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """Pixels and metadata of an image file.

    Attributes:
        rgb_HWC: RGB, uint8 or uint16; the channels of a grey image are equal.
        alpha_HW: alpha channel of the same dtype; None for an opaque image.
        grey: whether the file is greyscale.
        exif: EXIF bytes without orientation; empty for none.
        profile: ICC profile; empty for none (sRGB).
        format: of the file, "png", "jpeg", "webp" or "tiff"; "png" for any other.
    """

    rgb_HWC: np.ndarray
    alpha_HW: np.ndarray | None = None
    grey: bool = False
    exif: bytes = b""
    profile: bytes = b""
    format: str = "png"

    @property
    def levels(self) -> int:
        """The maximum of the dtype, 255 or 65535."""
        return int(np.iinfo(self.rgb_HWC.dtype).max)

    def floats(self) -> np.ndarray:
        """RGB as float32 HWC in [0, 1]."""
        return self.rgb_HWC.astype(np.float32) / self.levels

    def planes(self) -> Iterator[np.ndarray]:
        """The channels of `floats` one by one (HW), so that only one need be in memory."""
        for channel in range(3):
            yield self.rgb_HWC[..., channel].astype(np.float32) / self.levels

    def resize(self, height: int, width: int) -> Photograph:
        """Bicubic resize with antialiasing; a photograph of that size is returned unchanged."""
        if self.rgb_HWC.shape[:2] == (height, width):
            return self
        planes = list(np.moveaxis(self.rgb_HWC, 2, 0)) + ([] if self.alpha_HW is None else [self.alpha_HW])
        if self.levels == 255:  # as `image_io.resize_image`
            done = [_pillow(plane, height, width) for plane in planes]
        else:
            wide = [_pillow(plane.astype(np.float32), height, width) for plane in planes]
            done = [np.rint(plane.clip(0, self.levels)).astype(self.rgb_HWC.dtype) for plane in wide]
        alpha = None if self.alpha_HW is None else done[3]
        return replace(self, rgb_HWC=np.stack(done[:3], axis=2), alpha_HW=alpha)

    def with_rgb(self, image_HWC: np.ndarray) -> Photograph:
        """The photograph with other RGB values: floats in [0, 1] (clipped), rounded to this one's levels."""
        if self.grey:
            grey_HW = image_HWC.clip(0, 1) @ np.array([0.299, 0.587, 0.114], image_HWC.dtype)
            image_HWC = np.broadcast_to(grey_HW[..., None], image_HWC.shape)
        painted_HWC = np.empty(image_HWC.shape, self.rgb_HWC.dtype)
        for channel in range(3):  # one by one, to avoid a second float copy of a large image
            painted_HWC[..., channel] = np.rint(image_HWC[..., channel].clip(0, 1) * self.levels)
        return replace(self, rgb_HWC=painted_HWC)


def read_photograph(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Photograph:
    """Read one file, upright.

    Args:
        path: the file; its contents decide the format.
        max_pixels: the largest width x height that is decoded.

    Raises:
        BadImage: the file is missing, damaged, not an image, too large, or of an unknown value range.
    """
    try:
        with open_regular(path) as file:
            data = file.read()
    except OSError as error:
        raise BadImage(f"{path}: {error.strerror or error}") from error
    except NotRegularFile as error:
        raise BadImage(f"{path}: {error}") from error
    return decode_photograph(data, name=path, max_pixels=max_pixels)


def decode_photograph(data: bytes, *, name: str | Path, max_pixels: int = MAX_PIXELS) -> Photograph:
    """Decode a file's bytes as `read_photograph` does; `name` is its name in errors."""
    with open_image(io.BytesIO(data), name=name, size=len(data), max_pixels=max_pixels) as image:
        profile, transpose = image.info.get("icc_profile") or b"", exif_transpose(image)
        exif = _exif(image)  # this removes tags, the orientation too, from the image's EXIF
        if image.mode == "CMYK":
            pixels, profile = _Pixels(rgb_HWC=_from_cmyk(image, profile)), b""
        else:
            pixels = _pixels(image, data)
        rgb_HWC, alpha_HW = pixels.rgb_HWC, pixels.alpha_HW
        if transpose is not None:
            rgb_HWC = np.stack([_transpose(plane, transpose) for plane in np.moveaxis(rgb_HWC, 2, 0)], axis=2)
            alpha_HW = None if alpha_HW is None else _transpose(alpha_HW, transpose)
        return Photograph(
            rgb_HWC=np.require(rgb_HWC, requirements=["C", "W"]),  # as torch requires
            alpha_HW=alpha_HW,
            grey=pixels.grey,
            exif=exif,
            profile=profile if _fits(profile, grey=pixels.grey) else b"",
            format=kind_of(image),
        )


def kind_of(image: Image.Image) -> str:
    """The format of an opened file: "png", "jpeg", "webp" or "tiff"; "png" for any other."""
    kind = {"MPO": "jpeg"}.get(image.format or "", (image.format or "").lower())
    return kind if kind in WRITABLE_SUFFIXES else "png"


def photograph_of(image: Image.Image | ArrayLike) -> Photograph:
    """A PIL image or a NumPy array (HW, HW1, HW3, HW4; uint8, uint16, or floats in [0, 1]) as a photograph.

    Raises:
        ValueError: for any other shape, dtype or range.
    """
    if isinstance(image, Image.Image):
        file = io.BytesIO()
        image.save(file, format="PNG" if image.mode in PNG_MODES else "TIFF", **_metadata(image))
        return decode_photograph(file.getvalue(), name="a PIL image")
    array = np.asarray(image)
    planes = array[..., None] if array.ndim == 2 else array
    if planes.ndim != 3 or planes.shape[2] not in (1, 3, 4) or 0 in planes.shape:
        raise ValueError(f"an image of shape {array.shape}; expected HxW, HxWx1, HxWx3 or HxWx4")
    if np.issubdtype(planes.dtype, np.floating):
        if not (np.isfinite(planes).all() and planes.min() >= 0 and planes.max() <= 1):
            raise ValueError("floats are expected in [0, 1]; divide by the largest level first")
        planes = np.rint(planes * 65535).astype(np.uint16)
    if planes.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"an image of {array.dtype}; expected uint8, uint16, or floats in [0, 1]")
    grey = planes.shape[2] == 1
    rgb_HWC = np.repeat(planes, 3, axis=2) if grey else np.ascontiguousarray(planes[..., :3])
    return Photograph(rgb_HWC=rgb_HWC, alpha_HW=planes[..., 3] if planes.shape[2] == 4 else None, grey=grey)


@dataclass(frozen=True, kw_only=True)
class _Pixels:
    """RGB, alpha, and whether the image is greyscale."""

    rgb_HWC: np.ndarray
    alpha_HW: np.ndarray | None = None
    grey: bool = False


def _pixels(image: Image.Image, data: bytes) -> _Pixels:
    deep = _deep_colours(image, data)
    if deep is None and (image.mode.startswith("I") or image.mode == "F"):
        deep = np.rint(grey_values(image) * 65535).astype(np.uint16)[..., None]
    if deep is not None:
        count = deep.shape[2]
        rgb_HWC = deep[..., :3] if count > 2 else np.repeat(deep[..., :1], 3, axis=2)
        return _Pixels(rgb_HWC=rgb_HWC, alpha_HW=deep[..., -1] if count in (2, 4) else None, grey=count < 3)
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        return _Pixels(rgb_HWC=rgba[..., :3], alpha_HW=rgba[..., 3], grey=grey)
    return _Pixels(rgb_HWC=np.asarray(image.convert("RGB")), grey=grey)


def _deep_colours(image: Image.Image, data: bytes) -> np.ndarray | None:
    """HWC uint16 of a 16-bit colour (or grey with alpha) PNG or TIFF, which Pillow reads as 8 bits."""
    if image.mode not in ("RGB", "RGBA", "LA"):
        return None
    if image.format == "PNG" and data[24:25] == b"\x10":
        import torch
        from torchvision.io import ImageReadMode, decode_image

        raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return np.moveaxis(decode_image(raw, mode=ImageReadMode.UNCHANGED).numpy(), 0, 2)
    if isinstance(image, TiffImageFile) and set(image.tag_v2.get(BITS_PER_SAMPLE, ())) == {16}:
        import tifffile

        try:
            found = tifffile.imread(io.BytesIO(data), key=0)
        except Exception:  # a compression that tifffile cannot decode: fall back to Pillow's 8 bits
            return None
        plain = found.dtype == np.uint16 and found.ndim == 3 and found.shape[2] in (3, 4)
        return found if plain and found.shape[:2] == (image.height, image.width) else None
    return None


def _from_cmyk(image: Image.Image, profile: bytes) -> np.ndarray:
    """sRGB of a CMYK image: by its profile if that is readable, else by Pillow's formula."""
    try:
        inks = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, inks, srgb, outputMode="RGB")
        return np.asarray(converted)
    except (*DECODER_ERRORS, ImageCms.PyCMSError):
        return np.asarray(image.convert("RGB"))


def _fits(profile: bytes, *, grey: bool) -> bool:
    """Whether a profile's colour space (byte 16 of its header) is that of the written channels."""
    return profile[16:20] == (b"GRAY" if grey else b"RGB ")


def _exif(image: Image.Image) -> bytes:
    """EXIF without orientation and sizes, which may differ in the restored file; empty if it is broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = image.getexif()
            for tag in [ORIENTATION, *WIDTH_TAGS, *HEIGHT_TAGS]:
                found.pop(tag, None)
                found.get_ifd(EXIF_FOLDER).pop(tag, None)
            if image.format == "TIFF":
                for tag in set(found) - TIFF_TAGS:
                    del found[tag]
            return found.tobytes() if len(found) or found.get_ifd(EXIF_FOLDER) else b""
    except DECODER_ERRORS:
        return b""


def _metadata(image: Image.Image) -> dict[str, Any]:
    """ICC profile and EXIF of a PIL image, as arguments of `save`."""
    names: Sequence[str] = ("icc_profile", "exif")
    return {name: image.info[name] for name in names if image.info.get(name)}


def _transpose(plane_HW: np.ndarray, how: Image.Transpose) -> np.ndarray:
    """Pillow's transpose for any dtype."""
    turn = Image.Transpose
    if how in (turn.TRANSPOSE, turn.TRANSVERSE):
        plane_HW = plane_HW.T if how == turn.TRANSPOSE else plane_HW[::-1, ::-1].T
    else:
        turns = {turn.ROTATE_90: 1, turn.ROTATE_180: 2, turn.ROTATE_270: 3}
        flips = {turn.FLIP_LEFT_RIGHT: 1, turn.FLIP_TOP_BOTTOM: 0}
        plane_HW = np.rot90(plane_HW, turns[how]) if how in turns else np.flip(plane_HW, flips[how])
    return np.ascontiguousarray(plane_HW)


def _pillow(plane_HW: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.array(Image.fromarray(plane_HW).resize((width, height), Image.Resampling.BICUBIC))
