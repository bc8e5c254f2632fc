"""Checks of a source's images before a run: their sizes, those that are too small, and files that cannot be read.

Training images with a shorter side below `min_size` pixels are excluded: upsampled to the crop, they would teach blur
as detail. Sizes are read from the file headers before the first step. Images between `min_size` and the crop are
upsampled, and their number is logged. Selected by `min_size` of `restore-lab train`, by default the crop itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from restore_lab.data.dataset import Ordered, Source, header_of
from restore_lab.data.frames import describe_frames, take_frames
from restore_lab.data.image_io import BadImage, Header
from restore_lab.types import Picture

log = logging.getLogger(__name__)
MAX_HEADERS = 200_000  # of a larger source this many are read, evenly spaced


class BadFiles:
    """Files that cannot be read, each logged once, and files of which only the first frame is used."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.frames: dict[str, int] = {}

    def note(self, lines: Sequence[str], frames: Mapping[str, int] | None = None) -> None:
        """Record errors and frames; log new errors."""
        for line in dict.fromkeys(lines):
            if line not in self.lines:
                self.lines.append(line)
                log.warning("left out a bad image, %s", line)
        self.frames |= frames or {}

    def summary(self) -> str:
        """A line for the end of a run; empty if there is nothing to report."""
        bad = f"bad image files left out: {len(self.lines)}" if self.lines else ""
        return "; ".join(part for part in (bad, describe_frames(self.frames)) if part)


class Subset:
    """A subset of a source."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def keys(self) -> list[str]:
        """Keys of the subset."""
        keys = self._source.keys()
        return [keys[index] for index in self._indices]

    def read(self, index: int, *, epoch: int = 0) -> Picture:
        """Decode one image.

        Raises:
            BadImage: the file cannot be read.
        """
        return self._source.read(int(self._indices[index]), epoch=epoch)

    def header(self, index: int) -> Header | None:
        """An image's size, without decoding it."""
        return header_of(self._source, int(self._indices[index]))


class OrderedSubset(Subset):
    """A subset of a source that defines the order of its samples."""

    def order(self, *, seed: int, epoch: int) -> np.ndarray:
        """The source's order, restricted to the subset."""
        assert isinstance(self._source, Ordered)
        place = np.full(len(self._source), -1, np.int64)
        place[self._indices] = np.arange(len(self._indices))
        order = place[self._source.order(seed=seed, epoch=epoch)]
        return order[order >= 0]


@runtime_checkable
class Composite(Protocol):
    """A source that draws its images at random from others, so that an index has no fixed size."""

    def parts(self) -> Mapping[str, Source]: ...

    def with_parts(self, parts: Mapping[str, Source]) -> Source: ...


def screen(source: Source, *, name: str, crop: int | None, min_size: int | None) -> Source:
    """Log the image sizes, and exclude images that are too small.

    Args:
        source: of the images; one without known sizes is returned unchanged.
        name: of the source in the log.
        crop: side of the crop in pixels; None for whole images.
        min_size: images with a shorter side below this, in pixels, are excluded; None for no limit.

    Raises:
        ValueError: all are too small.
    """
    if isinstance(source, Composite):
        parts = source.parts().items()
        return source.with_parts(
            {part: screen(one, name=f"{name}, {part}", crop=crop, min_size=min_size) for part, one in parts}
        )
    sizes, total = _sizes(source), len(source)
    if not sizes:
        return source
    small = [index for index, size in sizes.items() if min_size is not None and min(size) < min_size]
    if len(small) == len(sizes):
        raise ValueError(
            f"{name}: none of {total} images has a shorter side of min_size={min_size} pixels (the largest is "
            f"{_largest(sizes)}); min_size=1 enlarges them to the crop, but blur is then learnt as detail"
        )
    log.info("%s", _summary(sizes, small=small, name=name, total=total, crop=crop, min_size=min_size))
    if not small or len(sizes) + MAX_HEADERS < total:  # of a larger source the dataset excludes them when they are read
        return source
    indices = np.delete(np.arange(total), small)
    return OrderedSubset(source, indices) if isinstance(source, Ordered) else Subset(source, indices)


def report_enlarged(source: Source, *, name: str, crop: int | None) -> None:
    """Log how many test images are smaller than the crop: upsampled, they are the reference of the metrics."""
    sizes = _sizes(source) if crop is not None else {}
    enlarged = [index for index, size in sizes.items() if min(size) < (crop or 0)]
    if enlarged:
        log.warning("%s: %d of %d images are enlarged to the crop of %d pixels", name, len(enlarged), len(sizes), crop)


def _sizes(source: Source) -> dict[int, tuple[int, int]]:
    """Width and height by index, of images with a known size."""
    sizes: dict[int, tuple[int, int]] = {}
    for index in range(0, len(source), -(-len(source) // MAX_HEADERS)):
        try:
            header = header_of(source, index)
        except BadImage:  # reported when it is read
            continue
        if header is not None:
            sizes[index] = (header.width, header.height)
    return sizes


def _summary(
    sizes: Mapping[int, tuple[int, int]],
    *,
    small: Sequence[int],
    name: str,
    total: int,
    crop: int | None,
    min_size: int | None,
) -> str:
    ordered = sorted(sizes.values(), key=lambda size: (min(size), max(size)))
    low, middle, high = (f"{w}x{h}" for w, h in (ordered[0], ordered[len(ordered) // 2], ordered[-1]))
    enlarged = sum(min(size) < (crop or 0) for size in ordered) - len(small)
    looked = "" if len(sizes) >= total else f" ({len(sizes)} of known size)"
    parts = [f"{name}: {total} images{looked}, {low} to {high} pixels, median {middle}"]
    parts += [f"{len(small)} left out, below min_size={min_size}"] if small else []
    parts += [f"{enlarged} enlarged to crop={crop}"] if enlarged else []
    frames = describe_frames(take_frames())
    return "; ".join([*parts, *([frames] if frames else [])])


def _largest(sizes: Mapping[int, tuple[int, int]]) -> str:
    width, height = max(sizes.values(), key=min)
    return f"{width}x{height}"
