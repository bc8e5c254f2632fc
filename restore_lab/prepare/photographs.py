"""Freely licensed photographs from Debian packages, as captioned training tiles: `make photographs`.

`photographs.yaml` lists each with its package, author, licence, hash and captions. The packages are downloaded and
unpacked, never installed. A photograph is downsampled to several short sides and cropped to squares of `TILE` pixels
on an even grid; tiles without detail are excluded. A tile has the caption of the photograph, or of the part at the
tile's centre. Tiles are written to `train/`, those of the six held-out photographs (authors are in one split only) to
`val/`, with `captions.jsonl` and CREDITS.md. Selected by `data=photographs_free`.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from restore_lab.data.image_io import read_image, resize_image, write_png
from restore_lab.storage.atomic import write_bytes_atomic
from restore_lab.storage.hashes import hash_of

log = logging.getLogger(__name__)
LISTING = Path(__file__).with_suffix(".yaml")
TILE = 256  # pixels
SHORT_SIDES = (288, 448, 704, 1088, 1600)  # in pixels, for scales of at most `SHRINK`
SHRINK = 0.75  # photographs are compressed or soft at full resolution
DETAIL = 3.0  # minimum mean absolute difference between neighbours, of 255
WHOLE = 0.5  # a tile of at least this fraction of the area has the caption of the whole photograph


@dataclass(frozen=True, kw_only=True)
class DebianPhotograph:
    """One photograph of the list.

    Attributes:
        package: the Debian package.
        file: its path in the package.
        author, licence: from the package.
        sha256: of the file.
        caption: of the whole photograph.
        parts: (left, top, right, bottom) as fractions of width and height, and a caption.
        held: out of training, for validation.
    """

    package: str
    file: str
    author: str
    licence: str
    sha256: str
    caption: str
    parts: tuple[tuple[tuple[float, float, float, float], str], ...] = ()
    held: bool = False

    @property
    def key(self) -> str:
        """The path in the package with dashes, since file names repeat between folders."""
        return Path(self.file.removeprefix("usr/share/")).with_suffix("").as_posix().replace("/", "-")


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One captioned tile of a photograph."""

    image_HWC: np.ndarray
    caption: str
    key: str


@cache
def photographs() -> tuple[DebianPhotograph, ...]:
    """All photographs of the list."""
    listed = yaml.safe_load(LISTING.read_text(encoding="utf-8"))["photographs"]
    return tuple(_photograph(entry) for entry in listed)


def captions() -> list[str]:
    """All captions of photographs and parts in the training split."""
    return [text for p in photographs() if not p.held for text in (p.caption, *(caption for _, caption in p.parts))]


def fetch(output: str | Path, *, packages: str | Path | None = None) -> dict[str, int]:
    """Download, unpack and tile what is missing below `output`.

    Args:
        output: folder of `train/`, `val/` and `CREDITS.md`; existing folders are complete and kept.
        packages: a folder with the .deb files; None downloads them with apt-get.

    Returns:
        The number of tiles in each folder.

    Raises:
        ValueError: without apt-get or dpkg-deb, or if a package or file is missing or has another hash.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    missing = [half for half in ("train", "val") if not (output / half).is_dir()]
    if missing:
        with tempfile.TemporaryDirectory(dir=output, prefix=".unpacked-") as scratch:
            unpacked = _unpack(Path(scratch), packages)
            for half in missing:
                _write(output / half, [p for p in photographs() if p.held == (half == "val")], unpacked)
        write_bytes_atomic(output / "CREDITS.md", _credits().encode())
    return {half: sum(1 for _ in (output / half).glob("*.png")) for half in ("train", "val")}


def tiles(photograph: DebianPhotograph, image_HWC: np.ndarray) -> Iterator[Tile]:
    """The tiles of a photograph with enough detail, coarsest scale first.

    Args:
        photograph: for captions and key.
        image_HWC: uint8.
    """
    height, width = image_HWC.shape[:2]
    for short in SHORT_SIDES:
        ratio = short / min(height, width)
        if ratio > SHRINK:
            return
        small_HWC = resize_image(image_HWC, height=round(height * ratio), width=round(width * ratio))
        for number, (top, left) in enumerate(_corners(*small_HWC.shape[:2])):
            tile_HWC = small_HWC[top : top + TILE, left : left + TILE]
            if detail(tile_HWC) >= DETAIL:
                caption = _caption(photograph, top=top, left=left, shape=small_HWC.shape[:2])
                yield Tile(image_HWC=tile_HWC, caption=caption, key=f"{photograph.key}-{short}-{number:03d}")


def detail(image_HWC: np.ndarray) -> float:
    """The mean absolute difference between neighbouring pixels, of 255."""
    grey_HW = image_HWC.astype(np.float32).mean(axis=2)
    return float((np.abs(np.diff(grey_HW, axis=0)).mean() + np.abs(np.diff(grey_HW, axis=1)).mean()) / 2)


def _photograph(entry: Mapping[str, Any]) -> DebianPhotograph:
    parts = tuple((tuple(part["box"]), part["caption"]) for part in entry.get("parts", ()))
    return DebianPhotograph(**{**entry, "parts": parts})


def _corners(height: int, width: int) -> list[tuple[int, int]]:
    """(top, left) of tiles on an even grid that covers the image with minimal overlap."""
    rows, columns = -(-height // TILE), -(-width // TILE)
    tops = np.linspace(0, height - TILE, rows).round().astype(int)
    lefts = np.linspace(0, width - TILE, columns).round().astype(int)
    return [(int(top), int(left)) for top in tops for left in lefts]


def _caption(photograph: DebianPhotograph, *, top: int, left: int, shape: Sequence[int]) -> str:
    height, width = shape
    if WHOLE * height * width <= TILE * TILE:
        return photograph.caption
    x, y = (left + TILE / 2) / width, (top + TILE / 2) / height
    inside = (caption for (x0, y0, x1, y1), caption in photograph.parts if x0 <= x <= x1 and y0 <= y <= y1)
    return next(inside, photograph.caption)


def _write(folder: Path, chosen: Sequence[DebianPhotograph], unpacked: Path) -> None:
    """Write the tiles and captions of some photographs to a folder, atomically."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        part, captions = Path(scratch) / folder.name, []
        for photograph in chosen:
            file = unpacked / photograph.file
            if not file.is_file() or hash_of(file) != photograph.sha256:
                raise ValueError(
                    f"{photograph.package}: {photograph.file} is missing or is not the listed photograph; "
                    f"the packages of Debian 12 (bookworm) hold it"
                )
            for tile in tiles(photograph, read_image(file)):
                write_png(part / f"{tile.key}.png", tile.image_HWC)
                captions.append({"file_name": f"{tile.key}.png", "caption": tile.caption})
            log.info("%s: %d tiles so far", photograph.key, len(captions))
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in captions)
        write_bytes_atomic(part / "captions.jsonl", lines.encode())
        part.rename(folder)


def _unpack(scratch: Path, packages: str | Path | None) -> Path:
    """Download and unpack the packages; returns the folder of their files."""
    wanted = sorted({photograph.package for photograph in photographs()})
    for tool in ("dpkg-deb",) if packages is not None else ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise ValueError(
                f"the photographs come in Debian packages, and {tool} is missing here; on a Debian machine "
                f"make them and copy the folder, or give packages=FOLDER with {', '.join(wanted)}"
            )
    if packages is None:
        packages = scratch
        _call(["apt-get", "download", *wanted], folder=scratch, hint="`apt-get update` first, on Debian 12 (bookworm)")
    files = {name: next(Path(packages).glob(f"{name}_*.deb"), None) for name in wanted}
    absent = [name for name, file in files.items() if file is None]
    if absent:
        raise ValueError(f"packages={packages}: no .deb of {', '.join(absent)}; apt-get download {' '.join(absent)}")
    for file in files.values():
        _call(["dpkg-deb", "-x", str(file), str(scratch / "files")], folder=scratch, hint="download it again")
    return scratch / "files"


def _call(command: Sequence[str], *, folder: Path, hint: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise ValueError(f"{' '.join(command[:2])} failed ({reason}); {hint}")


def _credits() -> str:
    rows = [f"| `{p.file}` | {p.package} | {p.author} | {p.licence} |" for p in photographs()]
    head = ["# Whose photographs these tiles are cut from", "", "| file | package | author | licence |"]
    return "\n".join([*head, "|---|---|---|---|", *rows, ""])
