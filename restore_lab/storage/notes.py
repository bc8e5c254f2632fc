"""Notes on large files, so that terabytes are not read again for their name: in the person's own cache, nowhere else.

A note says what a file's bytes hash to, and an identity believes it. So it is kept by the file's absolute path below
`$XDG_CACHE_HOME/restore_lab` (`~/.cache`), never beside the file, where somebody who sends the file could have written
it too. It is good while the file's size and times stay; the time of its last change (ctime) cannot be set, so a file
that was put in another's place has none.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from restore_lab.storage.foreign import json_of

CACHE = "restore_lab"


def note_place(path: Path) -> Path:
    """Where the note on a file lies."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / CACHE
    named = hashlib.sha256(os.path.realpath(path).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return home / "index" / f"{named}.json"


def stamp(path: Path) -> dict[str, int]:
    """What has to stay for a note to be good."""
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns}


def read_note(path: Path) -> dict[str, Any] | None:
    """The note on a file as it is now, which has its "sha256"; None if there is none."""
    try:
        note = json_of(note_place(path))
        same = all(note[key] == value for key, value in stamp(path).items())
        return note if same and isinstance(note["sha256"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
