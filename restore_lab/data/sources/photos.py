"""The photographs in scikit-image's wheel, each with a caption: held out for evaluation.

They are read by path from the installed package, without importing it or downloading anything. Each is downsampled to a
short side of `size` pixels, then `crops` squares of side `crop` are cropped on an even grid: keys "astronaut_0",
"astronaut_1", ... With `crops: 0` images are whole (key "astronaut"). Selected by `data=photos`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from restore_lab.config.kinds import CountOrZero, Pixels
from restore_lab.config.validate import check_arguments
from restore_lab.data.image_io import read_image, resize_image
from restore_lab.types import Picture


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A file in skimage/data and its caption."""

    file: str
    caption: str


PHOTOS = {
    "astronaut": Photo(file="astronaut.png", caption="a smiling astronaut in an orange space suit beside a flag"),
    "chelsea": Photo(file="chelsea.png", caption="a close-up of a ginger tabby cat with green eyes"),
    "coffee": Photo(file="coffee.png", caption="a cup of espresso on a red saucer with a spoon on a wooden table"),
    "rocket": Photo(file="rocket.jpg", caption="a rocket on its launch pad under a dark blue evening sky"),
    "hubble_deep_field": Photo(file="hubble_deep_field.jpg", caption="many small bright galaxies in black space"),
    "retina": Photo(file="retina.jpg", caption="an orange human retina with branching blood vessels"),
    "immunohistochemistry": Photo(file="ihc.png", caption="a microscope image of tissue stained brown and blue"),
    "stereo_motorcycle": Photo(file="motorcycle_left.png", caption="a red motorcycle parked in a garage with shelves"),
    "camera": Photo(file="camera.png", caption="a black and white photo of a man with a camera on a tripod"),
    "brick": Photo(file="brick.png", caption="a grey brick wall"),
    "grass": Photo(file="grass.png", caption="a grey lawn of short grass"),
    "gravel": Photo(file="gravel.png", caption="grey gravel, many small stones"),
    "moon": Photo(file="moon.png", caption="the grey surface of the moon with small craters"),
    "coins": Photo(file="coins.png", caption="rows of ancient coins on a dark background, in grey"),
    "clock": Photo(file="clock_motion.png", caption="a grey clock blurred by motion"),
    "cell": Photo(file="cell.png", caption="one bright round cell on a dark grey background"),
    "page": Photo(file="page.png", caption="a printed page of black text on paper"),
    "text": Photo(file="text.png", caption="handwritten formulas in dark ink on paper"),
}


@check_arguments
class PhotosSource:
    """Evaluation photographs, whole or as crops."""

    def __init__(self, names: Sequence[str], *, size: Pixels | None, crops: CountOrZero, crop: Pixels | None) -> None:
        """Select the photographs; each is decoded at its first use and then cached.

        Args:
            names: keys of `PHOTOS`, in order.
            size: short side in pixels to downsample to; None for the original size.
            crops: crops per photograph; 0 for the whole photograph.
            crop: side of a crop in pixels.

        Raises:
            ValueError: an unknown name, a crop without a side or larger than `size`, or no scikit-image.
        """
        unknown = [name for name in names if name not in PHOTOS]
        if unknown or not names:
            raise ValueError(f"names={list(names)}: unknown {unknown or 'empty list'}; there are {', '.join(PHOTOS)}")
        if crops > 0 and crop is None:
            raise ValueError(f"crops={crops} needs the side of a crop in pixels: crop=512")
        if crops > 0 and size is not None and crop is not None and crop > size:
            raise ValueError(f"crop={crop} is larger than size={size}; lower crop or raise size")
        self._names = tuple(names)
        self._size = size
        self._crops = crops
        self._crop = crop
        self._folder = photos_folder()
        self._cache: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._names) * max(self._crops, 1)

    def keys(self) -> list[str]:
        """One key per image: all crops of the first photograph, then of the second, ..."""
        if self._crops == 0:
            return list(self._names)
        return [f"{name}_{number}" for name in self._names for number in range(self._crops)]

    def read(self, index: int, *, epoch: int = 0) -> Picture:
        """One photograph or crop; `epoch` is ignored.

        Raises:
            BadImage: the installed file is damaged.
            ValueError: the photograph is smaller than the crop.
        """
        name = self._names[index // max(self._crops, 1)]
        image_HWC = self._photo(name)
        if self._crops > 0 and self._crop is not None:
            if min(image_HWC.shape[:2]) < self._crop:
                raise ValueError(
                    f"{PHOTOS[name].file}: {image_HWC.shape[:2]} is smaller than crop={self._crop}; lower crop"
                )
            corners = crop_grid(*image_HWC.shape[:2], crop=self._crop, count=self._crops)
            top, left = corners[index % self._crops]
            image_HWC = image_HWC[top : top + self._crop, left : left + self._crop].copy()
        return Picture(hq_HWC=image_HWC, caption=PHOTOS[name].caption, key=self.keys()[index])

    def _photo(self, name: str) -> np.ndarray:
        if name not in self._cache:
            image_HWC = read_image(self._folder / PHOTOS[name].file)
            height, width = image_HWC.shape[:2]
            ratio = 1.0 if self._size is None else min(1.0, self._size / min(height, width))
            self._cache[name] = resize_image(image_HWC, height=round(height * ratio), width=round(width * ratio))
        return self._cache[name]


def crop_grid(height: int, width: int, *, crop: int, count: int) -> list[tuple[int, int]]:
    """(top, left) of `count` squares on an even grid from edge to edge, with more cells along the long side.

    Along a side with one cell the crop is centred, so that a single crop is the centre crop.
    """
    few = math.isqrt(count)
    many = math.ceil(count / few)
    rows, columns = (few, many) if width >= height else (many, few)
    tops, lefts = _spread(height - crop, rows), _spread(width - crop, columns)
    return [(top, left) for top in tops for left in lefts][:count]


def photos_folder() -> Path:
    """The data folder of the installed scikit-image, found without importing it.

    Raises:
        ValueError: scikit-image is not installed.
    """
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "data=photos reads the photographs inside scikit-image, which is missing; pip install scikit-image"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def _spread(room: int, count: int) -> list[int]:
    if count == 1:
        return [room // 2]
    return [round(room * number / (count - 1)) for number in range(count)]
