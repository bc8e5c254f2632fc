"""Files that a command writes where a person said: only where nothing lies, or where a note says that it is ours.

A note (`.restore-lab/<hash of the name>.json`, in the file's own folder) names the file and has the SHA-256 of what was
written last. A file that has another content now is the person's, as one without a note is, and is never written over.
The note is written before the file, with the content before it too, so that a command that is killed between the two
finds its own file again. A folder that is made as a whole (a training's, a record's) has one note of this kind; it
must be new or empty before. Without torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from restore_lab.storage.artefact import MANIFEST, write_bytes_atomic, write_json_atomic
from restore_lab.storage.foreign import json_of
from restore_lab.storage.walk import some

NOTES = ".restore-lab"
FOLDER = "folder.json"


def require_free(files: Iterable[Path]) -> None:
    """Refuse to write over files that are not ours.

    Raises:
        ValueError: with the first of them, and how many there are.
    """
    foreign = [file for file in files if os.path.lexists(file) and not written_by_us(file)]
    if foreign:
        raise ValueError(
            f"{some(foreign)}: not written by restore-lab, or changed since, and not written over; "
            f"move {'it' if len(foreign) == 1 else 'them'}, or choose another output"
        )


def written_by_us(file: Path) -> bool:
    """Whether a file holds what a command of ours wrote into it."""
    hashes = _hashes(file)
    return bool(hashes) and file.is_file() and not file.is_symlink() and _hash_of(file) in hashes


def write_output(file: str | Path, data: bytes) -> None:
    """Write a file whole or not at all, with a note that it is ours.

    Raises:
        ValueError: something lies there that is not ours.
    """
    place = Path(file)
    require_free([place])
    before = [_hash_of(place)] if place.is_file() else []
    note = _note(place)
    if note.parent.is_symlink():
        raise ValueError(f"{note.parent} is a link; remove it: notes on what is ours are kept in the folder itself")
    hashes = list(dict.fromkeys([hashlib.sha256(data).hexdigest(), *before]))
    text = json.dumps({"file": place.name, "sha256": hashes})  # ASCII: a name need not be valid text
    write_bytes_atomic(note, text.encode())
    write_bytes_atomic(place, data)


def take_folder(folder: str | Path, *, setting: str) -> None:
    """Take a folder for something that is made as a whole; one that is ours already stays so.

    Args:
        folder: need not be there yet.
        setting: what names it, for people.

    Raises:
        ValueError: it holds files that no command of ours wrote, or is no folder.
    """
    place = Path(folder)
    note = place / NOTES / FOLDER
    if note.is_file() or (place / MANIFEST).is_file():
        return
    if os.path.lexists(place) and not place.is_dir():
        raise ValueError(f"{setting}={folder} is a file; give a folder that is new or empty")
    foreign = sorted(entry for entry in place.iterdir() if not entry.name.startswith(".")) if place.is_dir() else []
    if foreign:
        raise ValueError(
            f"{setting}={folder} holds what no command of ours wrote there ({some([f.name for f in foreign])}); "
            "give a folder that is new or empty"
        )
    write_json_atomic(note, {"folder": "made by restore-lab"})


def _note(file: Path) -> Path:
    named = hashlib.sha256(os.fsencode(file.name)).hexdigest()[:32]
    return file.parent / NOTES / f"{named}.json"


def _hashes(file: Path) -> list[str]:
    try:
        note = json_of(_note(file), limit=2**16)
        return [text for text in note["sha256"] if isinstance(text, str)] if note["file"] == file.name else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _hash_of(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
