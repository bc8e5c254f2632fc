"""Files that a run writes: where they may lie."""

from __future__ import annotations

from pathlib import Path


def inside(folder: Path, name: str) -> Path:
    """A file below a folder, by a name that may have come with data.

    Raises:
        ValueError: if the name leads out of the folder, also by a link in it.
    """
    file = folder / name
    if not file.parent.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} leads out of {folder}, to {file}; keep to the output folder")
    return file
