"""Random photographs with a profile and EXIF."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageCms

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
DATE, MAKER, EXPOSURE = 0x0132, 0x010F, 0x829A


def random_levels(*shape: int, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    top = int(np.iinfo(dtype).max)
    return np.random.default_rng(seed).integers(0, top + 1, shape, dtype=dtype)


def exif(orientation: int = 1) -> Image.Exif:
    found = Image.Exif()
    found[0x0112], found[DATE], found[MAKER] = orientation, "2024:05:01 10:00:00", "A camera"
    found.get_ifd(0x8769)[EXPOSURE] = 0.25
    return found
