"""Paths as configs write them."""

from __future__ import annotations

from pathlib import Path

from restore_lab.storage.named import prerequisite_path

PACKAGE = Path(__file__).resolve().parents[1]


def place_of(text: str) -> Path:
    """The file or folder of a config's path; "asset:NAME" ships with the package (for "made:" see named.py)."""
    if text.startswith("asset:"):
        return PACKAGE / "assets" / text.removeprefix("asset:")
    return Path(prerequisite_path(text)).expanduser()
