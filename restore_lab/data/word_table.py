"""A user's table of prompts, one row per image: a caption and a restoration instruction.

CSV with a header, JSON (a list of records, or {name: record}), JSONL or parquet. A row identifies its image by one of
the name fields of captions.py (`file`, `image`, `name`, ...), as a path below the folder or a file name, with or
without suffix; `caption` and `instruction` may be empty.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from restore_lab.data import parquet
from restore_lab.data.sources.captions import CAPTION_KEYS, NAME_KEYS
from restore_lab.storage.foreign import bytes_of, json_lines, parse_json

INSTRUCTION_KEYS = ("instruction", "restoration_prompt")
MAX_WORD_TABLE_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """The prompts for one image; None for an empty or missing field."""

    caption: str | None = None
    instruction: str | None = None


class WordTable:
    """Prompts by image."""

    def __init__(self, path: str | Path) -> None:
        """Read the table.

        Raises:
            ValueError: it is missing, too large, malformed, or lacks a name column; one line with the row.
        """
        self.path = Path(path).expanduser()
        self._exact: dict[str, PromptRow] = {}
        for number, row in enumerate(_rows(self.path), start=1):
            if not isinstance(row, Mapping):
                raise ValueError(f"{self.path}: row {number} is no record; expected fields such as file, caption")
            name = next((row[key] for key in NAME_KEYS if row.get(key)), None)
            if name is None:
                raise ValueError(f"{self.path}: row {number} names no image; expected one of {', '.join(NAME_KEYS)}")
            self._exact[str(PurePosixPath(str(name).replace("\\", "/")))] = PromptRow(
                caption=_text(row, CAPTION_KEYS), instruction=_text(row, INSTRUCTION_KEYS)
            )
        short: dict[str, set[str]] = {}
        for name in self._exact:
            for form in {PurePosixPath(name).name, PurePosixPath(name).stem, str(PurePosixPath(name).with_suffix(""))}:
                short.setdefault(form, set()).add(name)
        self._short = {form: names.pop() for form, names in short.items() if len(names) == 1}

    def of(self, name: str) -> PromptRow:
        """The prompts for the image at a path below the folder; all None if it is not in the table."""
        path = PurePosixPath(name)
        for form in (name, str(path.with_suffix("")), path.name, path.stem):
            found = self._exact.get(form) or self._exact.get(self._short.get(form, ""))
            if found is not None:
                return found
        return PromptRow()

    def require_any(self, names: Iterable[str]) -> None:
        """Check that the table has prompts for at least one of the images.

        Raises:
            ValueError: if it has none.
        """
        if not any(self.of(name) != PromptRow() for name in names):
            raise ValueError(f"{self.path}: says nothing of these images; it names {', '.join(list(self._exact)[:3])}")


def _rows(path: Path) -> Iterable[Any]:
    kinds = (".csv", ".json", ".jsonl", ".parquet")
    if path.suffix.lower() not in kinds or not path.is_file():
        raise ValueError(f"{path}: no such table of words; give one of {', '.join(kinds)}")
    if path.stat().st_size > MAX_WORD_TABLE_BYTES:
        raise ValueError(f"{path}: more than {MAX_WORD_TABLE_BYTES >> 20} MiB; no table of words is so long")
    try:
        if path.suffix.lower() == ".parquet":
            return parquet.rows(path)
        text = bytes_of(path, limit=MAX_WORD_TABLE_BYTES).decode("utf-8-sig")
        if path.suffix.lower() == ".csv":
            return list(csv.DictReader(text.splitlines()))
        if path.suffix.lower() == ".jsonl":
            return json_lines(text, name=path.name)
        raw = parse_json(text, name=path.name)
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path}: not a readable table of words ({' '.join(str(error).split())[:200]})") from error
    if isinstance(raw, Mapping):
        return [{"name": name, **value} if isinstance(value, Mapping) else value for name, value in raw.items()]
    if not isinstance(raw, list):
        raise ValueError(f"{path}: expected a list of records, got {type(raw).__name__}")
    return raw


def _text(row: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    """The first field that is not empty, on one line."""
    for key in keys:
        text = " ".join(str(row[key]).split()) if row.get(key) else ""
        if text:
            return text
    return None
