"""Names and contents of output files: safe paths, safe lengths, safe spreadsheet cells."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from restore_lab.storage.free_space import check_names

MAX_NAME = 220  # bytes of a file's name, below the usual limit of 255
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # first characters of a spreadsheet formula


def path_inside(folder: Path, name: str) -> Path:
    """The path of a file below a folder, by an untrusted name.

    Raises:
        ValueError: if the name leads out of the folder, directly or through a link, or is too long.
    """
    check_names(name)
    file = folder / name
    if not file.parent.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} leads out of {folder}, to {file}; keep to the output folder")
    return file


def shorten(name: str) -> str:
    """A path whose last part leaves room for a suffix; a hash replaces the rest of a long one, so names stay unique."""
    folder, slash, last = name.rpartition("/")
    whole = os.fsencode(last)
    if len(whole) <= MAX_NAME:
        return name
    kept = whole[: MAX_NAME - 9].decode(errors="ignore")
    return f"{folder}{slash}{kept}-{hashlib.sha256(whole).hexdigest()[:8]}"


def spreadsheet_cell(value: object) -> object:
    """A value for a CSV file that is safe to open in a spreadsheet.

    Text that a spreadsheet would run as a formula ("=cmd|...", "@SUM(...)") is prefixed with an apostrophe; numbers
    stay numbers.
    """
    if not isinstance(value, str) or not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
