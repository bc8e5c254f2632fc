"""Output files at user-given paths: written only to free paths and over this package's own output.

A note (`.restore-lab/<hash of the name>.json`, in the file's folder) has the file's name and the SHA-256 of its last
output. A file with another content, or without a note, belongs to the user and is never overwritten. The note is
written before the file and also keeps the previous hash, so a command that is killed in between still recognises its
own file. A folder that is made as a whole (a training's, a record's) has one such note and must be new or empty first.
Without torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from restore_lab.storage.artefact import MANIFEST
from restore_lab.storage.atomic import write_bytes_atomic, write_json_atomic
from restore_lab.storage.foreign import json_of
from restore_lab.storage.walk import head

OUTPUTS_FOLDER = ".restore-lab"
FOLDER = "folder.json"


def require_free(files: Iterable[Path]) -> None:
    """Refuse to overwrite the user's files.

    Raises:
        ValueError: with the first such file and their number.
    """
    foreign = [file for file in files if os.path.lexists(file) and not is_own_output(file)]
    if foreign:
        raise ValueError(
            f"{head(foreign)}: not written by restore-lab, or changed since, and not written over; "
            f"move {'it' if len(foreign) == 1 else 'them'}, or choose another output"
        )


def is_own_output(file: Path) -> bool:
    """Whether a file's content is the output of one of this package's commands."""
    hashes = _hashes(file)
    return bool(hashes) and file.is_file() and not file.is_symlink() and _hash_of(file) in hashes


def write_output(file: str | Path, data: bytes) -> None:
    """Write a file atomically, with its note.

    Raises:
        ValueError: if the user's own file is there.
    """
    place = Path(file)
    require_free([place])
    before = [_hash_of(place)] if place.is_file() else []
    note = _note(place)
    if note.parent.is_symlink():
        raise ValueError(f"{note.parent} is a link; remove it: notes on what is ours are kept in the folder itself")
    hashes = list(dict.fromkeys([hashlib.sha256(data).hexdigest(), *before]))
    text = json.dumps({"file": place.name, "sha256": hashes})  # ASCII: a name may be invalid Unicode
    write_bytes_atomic(note, text.encode())
    write_bytes_atomic(place, data)


def take_folder(folder: str | Path, *, setting: str) -> None:
    """Claim a folder for an output that is made as a whole; a folder claimed before is accepted.

    Args:
        folder: need not exist yet.
        setting: the setting that names it, for messages.

    Raises:
        ValueError: if it is no folder, or holds the user's files.
    """
    place = Path(folder)
    note = place / OUTPUTS_FOLDER / FOLDER
    if note.is_file() or (place / MANIFEST).is_file():
        return
    if os.path.lexists(place) and not place.is_dir():
        raise ValueError(f"{setting}={folder} is a file; give a folder that is new or empty")
    foreign = sorted(entry for entry in place.iterdir() if not entry.name.startswith(".")) if place.is_dir() else []
    if foreign:
        raise ValueError(
            f"{setting}={folder} holds what no command of ours wrote there ({head([f.name for f in foreign])}); "
            "give a folder that is new or empty"
        )
    write_json_atomic(note, {"folder": "made by restore-lab"})


def _note(file: Path) -> Path:
    named = hashlib.sha256(os.fsencode(file.name)).hexdigest()[:32]
    return file.parent / OUTPUTS_FOLDER / f"{named}.json"


def _hashes(file: Path) -> list[str]:
    try:
        note = json_of(_note(file), limit=2**16)
        return [text for text in note["sha256"] if isinstance(text, str)] if note["file"] == file.name else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _hash_of(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
