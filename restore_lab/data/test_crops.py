"""Test crops: the first images of a test set, resized, with random crops per image.

`eval_resize` resizes to a shorter side in pixels (SUPIR and DRA: 1024), then squares of `eval_crop` pixels are cropped:
at the centre (`eval_crops=null`, by the data module), or at `eval_crops` random positions per image, drawn from its key
(DRA's random crops, InstantIR's 2,000 samples of 350 images). `eval_first` is the number of images or crops used.
Selected by these settings of `restore-lab evaluate`; those that are set are part of the record's identity.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from restore_lab.config.kinds import Count, Pixels
from restore_lab.config.validate import check_arguments
from restore_lab.data.dataset import Source, Window, apply_window, choose_window, header_of
from restore_lab.data.image_io import Header
from restore_lab.random import rng
from restore_lab.types import Picture

if TYPE_CHECKING:
    import numpy as np


@check_arguments
class EvalCrops:
    """A test set with the resize and crops of a paper; LQ and HQ of a pair have the same window.

    Args:
        source: of the images.
        first: number of images or crops, in the source's order; null for all.
        resize: shorter side in pixels to resize to, up or down; null for no resize.
        crop: side of the random crops in pixels.
        crops: random crops per image; null for whole images.

    Raises:
        ValueError: for random crops without a side, or fewer images than `first`.
    """

    def __init__(
        self,
        *,
        source: Source,
        first: Count | None,
        resize: Pixels | None,
        crop: Pixels | None,
        crops: Count | None,
    ) -> None:
        if crops is not None and crop is None:
            raise ValueError(f"eval_crops={crops} needs the side of the squares: eval_crop=512")
        self._source, self._resize, self._crop, self._crops = source, resize, crop, crops
        count = len(source) * (crops or 1)
        if first is not None and first > count:
            raise ValueError(f"eval_first={first}: there are {count} pictures; lower it, or raise eval_crops")
        self._count = count if first is None else first

    def __len__(self) -> int:
        return self._count

    def keys(self) -> list[str]:
        """The source's keys, with the number of the crop appended if there are several per image."""
        keys = self._source.keys()
        return [self._key(keys[index // (self._crops or 1)], index) for index in range(self._count)]

    def header(self, index: int) -> Header | None:
        """An image's size after the resize, before the crop.

        Raises:
            BadImage: the file cannot be read.
        """
        header = header_of(self._source, index // (self._crops or 1))
        if header is None or self._resize is None:
            return header
        height, width = self._scaled(header.height, header.width)
        return replace(header, height=height, width=width)

    def read(self, index: int, *, epoch: int = 0) -> Picture:
        """One image or crop.

        Raises:
            BadImage: the file cannot be read.
        """
        picture = self._source.read(index // (self._crops or 1), epoch=epoch)
        image_HWC = picture.lq_HWC if picture.hq_HWC is None else picture.hq_HWC
        if image_HWC is None:
            return picture
        key = self._key(picture.key, index)
        window = self._window(*image_HWC.shape[:2], key=key)
        return replace(picture, hq_HWC=_cut(picture.hq_HWC, window), lq_HWC=_cut(picture.lq_HWC, window), key=key)

    def _key(self, key: str, index: int) -> str:
        return key if self._crops in (None, 1) else f"{key}_{index % self._crops}"

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        if self._resize is None:
            return height, width
        ratio = self._resize / min(height, width)
        return round(height * ratio), round(width * ratio)

    def _window(self, height: int, width: int, *, key: str) -> Window:
        height, width = self._scaled(height, width)
        if self._crops is None:
            return Window(height=height, width=width)
        return choose_window(height, width, crop=self._crop, flip=False, draw=rng("cuts", key))


def _cut(image_HWC: np.ndarray | None, window: Window) -> np.ndarray | None:
    return None if image_HWC is None else apply_window(image_HWC, window)
