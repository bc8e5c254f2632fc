"""Files that a run writes: where they may lie, and what a program that opens them must not run."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from restore_lab.storage.free_space import check_names

LONG = 220  # bytes of a file's name, of the 255 that there may be
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how what a spreadsheet runs begins


def inside(folder: Path, name: str) -> Path:
    """A file below a folder, by a name that may have come with data.

    Raises:
        ValueError: if the name leads out of the folder, also by a link in it, or is too long for a file system.
    """
    check_names(name)
    file = folder / name
    if not file.parent.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} leads out of {folder}, to {file}; keep to the output folder")
    return file


def shortened(name: str) -> str:
    """A path whose last part leaves room for an ending; what is cut off it stands as a hash, so that names differ."""
    folder, slash, last = name.rpartition("/")
    whole = os.fsencode(last)
    if len(whole) <= LONG:
        return name
    kept = whole[: LONG - 9].decode(errors="ignore")
    return f"{folder}{slash}{kept}-{hashlib.sha256(whole).hexdigest()[:8]}"


def spreadsheet_cell(value: Any) -> Any:
    """A value for a CSV file that a person may open in a spreadsheet.

    A text that a spreadsheet would take for a formula ("=cmd|...", "@SUM(...)") gets an apostrophe in front, which
    shows it as text; numbers stay numbers.
    """
    if not isinstance(value, str) or not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
