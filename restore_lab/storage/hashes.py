"""Integrity of weights: their SHA-256 hashes, stored in the folder's manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePath

from restore_lab.storage.artefact import Manifest

HASHES = "sha256"  # in a manifest's extra: {file name: hash}


def hash_of(file: str | PurePath) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def hashes(folder: str | PurePath) -> dict[str, str]:
    """The hashes of the weights in a folder, by name."""
    return {file.name: hash_of(file) for file in sorted(Path(folder).glob("*.safetensors"))}


def matches_manifest(file: str | PurePath) -> bool:
    """Whether weights match the hash in their manifest; True where there is none."""
    place = Path(file)
    try:
        noted = Manifest.read(place.parent).extra.get(HASHES, {})
    except (FileNotFoundError, ValueError):
        return True
    if not isinstance(noted, Mapping):
        return False
    return place.name not in noted or noted[place.name] == hash_of(place)
