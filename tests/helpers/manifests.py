"""Folders with nothing but a manifest."""

from __future__ import annotations

from pathlib import Path

from restore_lab.config.compose import OVERRIDES_KEY
from restore_lab.storage.artefact import Manifest


def manifest_folder(folder: Path, *words: object) -> Path:
    """A folder with nothing but a manifest, whose training was typed with these words."""
    folder.mkdir(parents=True, exist_ok=True)
    extra = {OVERRIDES_KEY: list(words)}
    Manifest(identity="0" * 16, kind="adaptor", settings={}, parents=(), extra=extra).write(folder)
    return folder
