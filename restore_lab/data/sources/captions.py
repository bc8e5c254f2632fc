"""Captions stored with the images: a `.txt` per image, or one JSON, JSONL or parquet table per folder.

A text file `cat.txt` (or `cat.png.txt`) next to `cat.png` takes precedence. A table is `captions.*`, `metadata.*` or
`<folder>.*` in the folder, or `<folder>.*` next to it: {name: caption}, or records with a name under one of `NAME_KEYS`
and a caption under one of `CAPTION_KEYS` (the first present one). A name is the path below the folder, with or without
suffix, or else a file name or stem that is unique in the table. Selected by `captions` of a source: auto, null, or the
path of a table.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from restore_lab.data import parquet
from restore_lab.storage.foreign import bytes_of, json_lines, parse_json
from restore_lab.storage.paths import place_of

NAME_KEYS = ("file_name", "filename", "file", "image", "image_path", "img_path", "path", "name", "key", "hq", "lq")
CAPTION_KEYS = ("caption", "text", "prompt", "llava_long", "llava_short", "description")
MAX_TABLE_BYTES, MAX_CAPTION_BYTES = 4 * 2**30, 2**20  # bytes: of a table, and of a text file
TABLE_SUFFIXES = (".json", ".jsonl", ".parquet")


class FolderCaptions:
    """The captions of one folder; an image without one gets the empty string."""

    def __init__(self, root: str | Path, *, table: str | Path | None = "auto") -> None:
        """Find and read the table of `root`.

        Args:
            root: the folder of the images.
            table: "auto" to search for one, a path, or None for no captions, from text files either.

        Raises:
            ValueError: the table is missing, malformed, or has no name or caption column.
        """
        self._root = Path(root)
        self._enabled = table is not None
        self.table = (
            find_table(self._root) if table == "auto" else (place_of(str(table)) if table is not None else None)
        )
        records = read_table(self.table) if self.table is not None else {}
        self._exact = {_clean(name): caption for name, caption in records.items()}
        self._loose = _unambiguous(self._exact)

    def of(self, path: Path) -> str:
        """The caption of the image at `path`, below the root."""
        if not self._enabled:
            return ""
        for sidecar in (path.with_suffix(".txt"), path.with_name(path.name + ".txt")):
            if os.path.isfile(sidecar):  # False for a name too long for the file system
                return " ".join(
                    bytes_of(sidecar, limit=MAX_CAPTION_BYTES).decode("utf-8-sig", errors="replace").split()
                )
        name = path.relative_to(self._root).as_posix() if path.is_relative_to(self._root) else path.name
        for candidate in (name, str(PurePosixPath(name).with_suffix(""))):
            if candidate in self._exact:
                return self._exact[candidate]
        return self._loose.get(path.name) or self._loose.get(path.stem) or ""

    def require_any(self, paths: Iterable[Path]) -> None:
        """Check that the table has a caption for at least one of the images.

        Raises:
            ValueError: if it has none.
        """
        if self.table is not None and not any(self.of(path) for path in paths):
            shown = ", ".join(list(self._exact)[:3]) or "nothing"
            raise ValueError(
                f"{self.table}: names none of the images in {self._root} (it has {shown}); set captions=null"
            )


def find_table(root: Path) -> Path | None:
    """The caption table of a folder, found by its file name, or None."""
    root = root.absolute()  # "." has no name
    stems = [root / "captions", root / "metadata", root / root.name, root.parent / root.name]
    candidates = (stem.with_name(stem.name + suffix) for stem in stems for suffix in TABLE_SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def read_table(path: Path) -> dict[str, str]:
    """Read {name: caption} from JSON, JSONL or parquet.

    Raises:
        ValueError: if it is missing or malformed, in one line.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such caption table; give an existing .json, .jsonl or .parquet, or captions=null")
    try:
        raw = _load(path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a readable {path.suffix.lstrip('.')} caption table ({reason})") from error
    if isinstance(raw, Mapping):
        return {str(name): _caption(path, value) for name, value in raw.items()}
    return dict(_name_and_caption(path, record) for record in raw)


def _load(path: Path) -> Any:
    if path.suffix == ".parquet":
        return parquet.rows(path, columns=NAME_KEYS + CAPTION_KEYS)  # such files often have the images too
    text = bytes_of(path, limit=MAX_TABLE_BYTES).decode("utf-8-sig")
    if path.suffix == ".jsonl":
        return json_lines(text, name=path.name)
    raw = parse_json(text, name=path.name)
    if not isinstance(raw, (dict, list)):
        raise ValueError(f"expected an object or a list, got {type(raw).__name__}")
    return raw


def _name_and_caption(path: Path, record: Any) -> tuple[str, str]:
    if not isinstance(record, Mapping):
        raise ValueError(f"{path}: expected records with a name and a caption, got {str(record)[:60]!r}")
    name = _first(path, record, NAME_KEYS)
    return str(name), _caption(path, _first(path, record, CAPTION_KEYS))


def _first(path: Path, record: Mapping[str, Any], keys: Sequence[str]) -> Any:
    for key in keys:
        if key in record:
            return record[key]
    has = " ".join(", ".join(map(str, record)).split()) or "nothing"
    raise ValueError(f"{path}: a record has none of the fields {', '.join(keys)}; it has {has[:200]}")


def _caption(path: Path, value: Any) -> str:
    """One caption: the first of a list, the caption field of a record."""
    if isinstance(value, Mapping):
        value = _first(path, value, CAPTION_KEYS)
    if isinstance(value, list):
        value = value[0] if value else ""
    return "" if value is None else " ".join(str(value).split())


def _clean(name: str) -> str:
    return str(PurePosixPath(name.replace("\\", "/")))


def _unambiguous(exact: Mapping[str, str]) -> dict[str, str]:
    """Captions by file name and by stem, without names that have two different captions."""
    loose: dict[str, str] = {}
    clashing: set[str] = set()
    for name, caption in exact.items():
        for short in {PurePosixPath(name).name, PurePosixPath(name).stem}:
            if loose.setdefault(short, caption) != caption:
                clashing.add(short)
    return {short: caption for short, caption in loose.items() if short not in clashing}
