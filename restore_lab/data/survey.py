"""What a person should hear of a source: how large its images are, which are too small, and what could not be read.

In training an image below `min_size` (its shorter side, in pixels) is left out: enlarged to the crop it would be learnt
from as if its blur were detail. Sizes are read from the files' headers before the first step. Images from `min_size` to
the crop are enlarged, and counted. Selected by `min_size` of `restore-lab train`; its default is the crop itself.
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
MOST = 200_000  # headers that are read; of a larger source as many, spread evenly


class BadFiles:
    """The files that could not be read, each logged once, and those of which only the first frame is used."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.frames: dict[str, int] = {}

    def note(self, lines: Sequence[str], frames: Mapping[str, int] | None = None) -> None:
        """Log and keep those not seen before."""
        for line in dict.fromkeys(lines):
            if line not in self.lines:
                self.lines.append(line)
                log.warning("left out a bad image, %s", line)
        self.frames |= frames or {}

    def summary(self) -> str:
        """Empty if all was well."""
        bad = f"bad image files left out: {len(self.lines)}" if self.lines else ""
        return "; ".join(part for part in (bad, describe_frames(self.frames)) if part)


class Chosen:
    """Some of a source's pictures."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def keys(self) -> list[str]:
        """The source's."""
        keys = self._source.keys()
        return [keys[index] for index in self._indices]

    def read(self, index: int, *, epoch: int = 0) -> Picture:
        """The source's.

        Raises:
            BadImage: the file cannot be read.
        """
        return self._source.read(int(self._indices[index]), epoch=epoch)

    def header(self, index: int) -> Header | None:
        """The source's."""
        return header_of(self._source, int(self._indices[index]))


class ChosenInOrder(Chosen):
    """Some of the pictures of a source that has a say in their order."""

    def order(self, *, seed: int, epoch: int) -> np.ndarray:
        """The source's, without the others."""
        assert isinstance(self._source, Ordered)
        place = np.full(len(self._source), -1, np.int64)
        place[self._indices] = np.arange(len(self._indices))
        order = place[self._source.order(seed=seed, epoch=epoch)]
        return order[order >= 0]


@runtime_checkable
class Composite(Protocol):
    """A source whose pictures come from others by chance, so that its indices say nothing of sizes."""

    def parts(self) -> Mapping[str, Source]: ...

    def with_parts(self, parts: Mapping[str, Source]) -> Source: ...


def screen(source: Source, *, name: str, crop: int | None, min_size: int | None) -> Source:
    """Say how large the images are, and leave out those that are too small.

    Args:
        source: of the images; one that cannot say their sizes comes back as it is.
        name: what it is for, for people.
        crop: the side of what is cut from them, in pixels; None for whole images.
        min_size: the shorter side below which they are left out, in pixels; None to leave none out.

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
    if not small or len(sizes) + MOST < total:  # of a larger source the dataset leaves them out as they come
        return source
    kept = np.delete(np.arange(total), small)
    return ChosenInOrder(source, kept) if isinstance(source, Ordered) else Chosen(source, kept)


def report_enlarged(source: Source, *, name: str, crop: int | None) -> None:
    """Say how many test images are smaller than what is cut from them: enlarged, they are the truth that is measured
    against.
    """
    sizes = _sizes(source) if crop is not None else {}
    enlarged = [index for index, size in sizes.items() if min(size) < (crop or 0)]
    if enlarged:
        log.warning("%s: %d of %d images are enlarged to the crop of %d pixels", name, len(enlarged), len(sizes), crop)


def _sizes(source: Source) -> dict[int, tuple[int, int]]:
    """Width and height by index, of those images that say them."""
    sizes: dict[int, tuple[int, int]] = {}
    for index in range(0, len(source), -(-len(source) // MOST)):
        try:
            header = header_of(source, index)
        except BadImage:  # named when its turn comes
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
