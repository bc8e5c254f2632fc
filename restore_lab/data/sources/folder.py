"""All images in a folder, sorted by name, with optional captions (captions.py).

An image's key is its path below the folder without suffix ("trip/cat 1"); `keys_of` resolves collisions. Files are
checked when they are read: a damaged one raises `BadImage`, which the data module counts. Links are followed, and
skipped files are counted (storage/walk.py). Selected by `data=folder data.root=...`.
"""

from __future__ import annotations

import glob
import logging
import os
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from restore_lab.config.validate import check_arguments
from restore_lab.data.image_io import IMAGE_SUFFIXES, MAX_PIXELS, Header, read_header, read_image
from restore_lab.data.sources.captions import FolderCaptions
from restore_lab.storage.paths import place_of
from restore_lab.storage.walk import Walk, describe_skipped, match, walk
from restore_lab.types import Picture

log = logging.getLogger(__name__)
# Formats of photographs that cannot be read here; the log counts them.
PHOTOGRAPHS = frozenset(
    (".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".exr", ".hdr")
    + (".svg", ".pdf", ".eps")
)
Role = Literal["hq", "lq"]


@check_arguments
class FolderSource:
    """The images of a folder or a glob pattern, or a single image file."""

    def __init__(
        self,
        root: str | Path,
        *,
        recursive: bool = True,
        captions: str | Path | None = "auto",
        role: Role = "hq",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """List the images, without decoding any.

        Args:
            root: a folder, one image file, or a pattern of files (`photos/*.jpg`, `photos/**/IMG_*`).
            recursive: whether to include subfolders.
            captions: "auto", None, or the path of a caption table.
            role: "hq" for clean images (to degrade or train on), "lq" for degraded ones (to restore).
            max_pixels: larger images count as bad files.

        Raises:
            ValueError: the folder does not exist or has no image file, or the caption table is malformed.
        """
        self._role = role
        self._max_pixels = max_pixels
        images = list_images(place_of(str(root)), recursive=recursive)
        images.report()
        self._base, self._names = images.base, images.names
        self._keys = keys_of(self._names)
        self._captions = FolderCaptions(self._base, table=captions)
        if captions not in (None, "auto"):
            self._captions.require_any(self._base / name for name in self._names)

    def __len__(self) -> int:
        return len(self._names)

    def keys(self) -> list[str]:
        """One key per image, in order."""
        return list(self._keys)

    def name(self, index: int) -> str:
        """An image's path below the folder, with its suffix."""
        return self._names[index]

    def file(self, index: int) -> Path:
        """The path of an image."""
        return self._base / self._names[index]

    def caption(self, index: int) -> str:
        """An image's caption; empty for none."""
        return self._captions.of(self.file(index))

    def header(self, index: int) -> Header:
        """An image's size and frames, without decoding it.

        Raises:
            BadImage: the file cannot be read.
        """
        return read_header(self.file(index))

    def read(self, index: int, *, epoch: int = 0) -> Picture:
        """Decode one image; `epoch` is ignored.

        Raises:
            BadImage: the file cannot be read.
        """
        path = self.file(index)
        image_HWC = read_image(path, max_pixels=self._max_pixels)
        good = self._role == "hq"
        return Picture(
            hq_HWC=image_HWC if good else None,
            lq_HWC=None if good else image_HWC,
            caption=self._captions.of(path),
            key=self._keys[index],
        )


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """The image files of a folder.

    Attributes:
        base: the folder.
        names: paths below it, with slashes, sorted.
        passed_over: number of other files by kind.
    """

    base: Path
    names: list[str]
    passed_over: Mapping[str, int]

    def report(self) -> None:
        """Log skipped files in one line, if there are any."""
        if left := describe_skipped(self.passed_over):
            log.warning("%s: %d images; passed over: %s", self.base, len(self.names), left)


def list_images(root: Path, *, recursive: bool = True) -> ImageFiles:
    """The image files of a folder or a glob pattern (`photos/**/*.jpg`), or a single image file.

    Raises:
        ValueError: `root` does not exist or matches nothing, or there is no image file in it.
    """
    pattern = str(root)
    if root.is_file():
        return ImageFiles(base=root.parent, names=[root.name], passed_over={})
    if not root.exists() and glob.has_magic(pattern):
        base, found = match(root)
        if not found.files:
            raise ValueError(f"{pattern}: no file has such a name; quote a pattern, so that the shell leaves it alone")
        return _images(base, found, what=pattern, where="of this name")
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; give the folder of the images")
    where = "in or below it" if recursive else "in it (recursive=false)"
    return _images(root, walk(root, depth=None if recursive else 1), what=pattern, where=where)


def _images(base: Path, found: Walk, *, what: str, where: str) -> ImageFiles:
    names = [name for name in found.files if _suffix(name) in IMAGE_SUFFIXES]
    stems = {os.path.splitext(name)[0] for name in names} | set(names)
    over = Counter(found.skipped)
    for name in found.files:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in PHOTOGRAPHS:
            over[f"unsupported {suffix.lower()} photograph"] += 1
        elif suffix.lower() not in IMAGE_SUFFIXES and not (suffix == ".txt" and stem in stems):  # a caption file
            over["file that is no image"] += 1
    if not names:
        left = f"; passed over: {describe_skipped(over)}" if over else ""
        raise ValueError(f"{what}: no image files {where}; looked for {' '.join(sorted(IMAGE_SUFFIXES))}{left}")
    return ImageFiles(base=base, names=names, passed_over=over)


def keys_of(names: Iterable[str]) -> list[str]:
    """One unique key per name, also on a case-insensitive file system.

    A key is the name without suffix, or the whole name if the short one is another's key or name; keys that still
    differ only by case get the suffixes "~2", "~3", ... A name without collisions has the same key in any folder.
    """
    names = list(names)
    short = [os.path.splitext(name)[0] for name in names]
    counts, whole = Counter(map(fold, short)), Counter(map(fold, names))

    def key(name: str, stem: str) -> str:
        others = whole[fold(stem)] - (fold(stem) == fold(name))
        return stem if counts[fold(stem)] == 1 and not others else name

    return unique_names([key(name, stem) for name, stem in zip(names, short, strict=True)])


def unique_names(names: Iterable[str], *, endings: Iterable[str] = ("",), folders: Iterable[str] = ()) -> list[str]:
    """The names, with "~2", "~3", ... appended where two would write the same file.

    Args:
        names: paths without ending.
        endings: of the files written for each name.
        folders: names of folders, which no file may have.
    """
    names, endings = list(names), list(endings)
    same = Counter(map(fold, names))
    taken, chosen = {fold(folder) for folder in folders}, list(names)
    # Names without collisions go first, so that they are never changed.
    for index in sorted(range(len(names)), key=lambda index: (same[fold(names[index])] > 1, names[index])):
        number = 1
        while taken & (files := {fold(f"{chosen[index]}{ending}") for ending in endings}):
            number += 1
            chosen[index] = f"{names[index]}~{number}"
        taken |= files
    return chosen


def fold(name: str) -> str:
    """A name as a case-insensitive file system compares it: normalised (NFC) and case-folded."""
    plain = unicodedata.normalize("NFC", posixpath.normpath(name))
    return unicodedata.normalize("NFC", plain.casefold())


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
