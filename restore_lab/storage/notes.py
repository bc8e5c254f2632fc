"""Cached hashes of large files in the user's cache, so terabytes are not read again for an identity.

Identities trust a note's hash. So notes are stored by the file's absolute path below `$XDG_CACHE_HOME/restore_lab`
(`~/.cache`), never next to the file, where the file's sender could have written one. A note is valid while the file's
size and times stay the same; its ctime cannot be set, so a replaced file has no valid note.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from restore_lab.storage.foreign import json_of

CACHE = "restore_lab"


def note_place(path: Path) -> Path:
    """The path of a file's note."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / CACHE
    named = hashlib.sha256(os.path.realpath(path).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return home / "index" / f"{named}.json"


def stamp(path: Path) -> dict[str, int]:
    """The file's size and times, which validate a note."""
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns}


def read_note(path: Path) -> dict[str, Any] | None:
    """The valid note of a file, with its "sha256"; None if there is none."""
    try:
        note = json_of(note_place(path))
        same = all(note[key] == value for key, value in stamp(path).items())
        return note if same and isinstance(note["sha256"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
