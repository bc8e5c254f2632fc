"""Any images under a folder, in the order of their names, with optional captions (see captioned.py).

A picture's key is its path below the folder without suffix ("trip/cat 1"); where two files would share a key, both keep
their suffix ("cat.jpg", "cat.png"). Files are verified when they are read: a damaged one raises `BadImage` then, and
the data module counts it. Hidden files and `__MACOSX` folders are left out. Selected by `data=folder data.root=...`.
"""

from __future__ import annotations

import glob
import itertools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from restore_lab.data.captioned import Captions
from restore_lab.data.image_io import MAX_PIXELS, SUFFIXES, read_image
from restore_lab.storage.artefacts import place_of
from restore_lab.types import Picture

# Photographs that no reader here opens; a person should hear that they were left.
PHOTOGRAPHS = frozenset(
    (".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".exr", ".hdr")
    + (".svg", ".pdf", ".eps")
)
Role = Literal["hq", "lq"]


class FolderSource:
    """The images of a folder, those of a pattern, or a single image file."""

    def __init__(
        self,
        root: str | Path,
        *,
        recursive: bool = True,
        captions: str | Path | None = "auto",
        role: Role = "hq",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """List the images; none is decoded yet.

        Args:
            root: a folder, one image file, or a pattern of files (`photos/*.jpg`, `photos/**/IMG_*`).
            recursive: whether folders below it count too.
            captions: "auto", None, or the path of a caption table.
            role: "hq" for good images (to be degraded or learnt from), "lq" for bad ones (to be restored).
            max_pixels: larger files count as bad.

        Raises:
            ValueError: the folder does not exist or holds no image file, or the caption table is wrong.
        """
        if role not in get_args(Role):
            raise ValueError(f"role={role!r}: expected one of {', '.join(get_args(Role))}")
        self._role = role
        self._max_pixels = max_pixels
        self._base, self._names = find_images(place_of(str(root)), recursive=recursive)
        self._keys = keys_of(self._names)
        self._captions = Captions(self._base, table=captions)
        if captions not in (None, "auto"):
            self._captions.require_any(self._base / name for name in self._names)

    def __len__(self) -> int:
        return len(self._names)

    def keys(self) -> list[str]:
        """One key an image, in order."""
        return list(self._keys)

    def name(self, index: int) -> str:
        """An image's path below the folder, with its suffix."""
        return self._names[index]

    def passed_over(self) -> dict[str, int]:
        """How many other files lie beside the images, by suffix: a camera's raw files, say, which nobody reads."""
        beside = {self._base / PurePosixPath(name).parent for name in self._names}
        suffixes = (path.suffix.lower() for folder in beside for path in folder.iterdir() if path.is_file())
        return {suffix: count for suffix, count in sorted(Counter(suffixes).items()) if suffix in PHOTOGRAPHS}

    def file(self, index: int) -> Path:
        """Where an image lies."""
        return self._base / self._names[index]

    def caption(self, index: int) -> str:
        """An image's caption; empty for none."""
        return self._captions.of(self.file(index))

    def read(self, index: int, *, epoch: int = 0) -> Picture:
        """Decode one image; `epoch` plays no role.

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


def find_images(root: Path, *, recursive: bool = True) -> tuple[Path, list[str]]:
    """The folder of images and their sorted paths below it (posix): a folder's, a pattern's, or one file's.

    Raises:
        ValueError: there is nothing of this name, or no image file in it.
    """
    pattern = str(root)
    if root.exists() or not glob.has_magic(pattern):
        return (root if root.is_dir() else root.parent), list_images(root, recursive=recursive)
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), root.parts))
    base = Path(*fixed) if fixed else Path()
    found = (Path(name) for name in glob.iglob(pattern, recursive=True))
    names = sorted(path.relative_to(base).as_posix() for path in found if path.is_file())
    if not names:
        raise ValueError(f"{pattern}: no file has such a name; quote a pattern, so that the shell leaves it alone")
    return base, names


def list_images(root: Path, *, recursive: bool = True) -> list[str]:
    """The image files of a folder as sorted paths below it (posix), or the name of `root` if it is a file.

    Raises:
        ValueError: there is no such folder, or no image file in it.
    """
    if root.is_file():
        return [root.name]
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; give the folder of the images")
    found = root.rglob("*") if recursive else root.glob("*")
    names = sorted(path.relative_to(root).as_posix() for path in found if _is_image_file(path, root))
    if not names:
        where = "in or below it" if recursive else "in it (recursive=false)"
        raise ValueError(f"{root}: no image files {where}; looked for {' '.join(sorted(SUFFIXES))}")
    return names


def keys_of(names: Iterable[str]) -> list[str]:
    """Names without suffix; those that would collide keep it."""
    names = list(names)
    short = [str(PurePosixPath(name).with_suffix("")) for name in names]
    count = Counter(short)
    return [key if count[key] == 1 else name for key, name in zip(short, names, strict=True)]


def _is_image_file(path: Path, root: Path) -> bool:
    parts = path.relative_to(root).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and path.suffix.lower() in SUFFIXES and path.is_file()
