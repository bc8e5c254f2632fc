"""The directory walk of every reader of folders.

Links to files and folders are followed. Link loops (detected by device and inode), hidden files and folders,
`__MACOSX`, broken links, unreadable folders and special files (pipes, sockets) are skipped and counted by kind. Files
are sorted by path. Without torch.
"""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MAX_PATHS = 1000  # to one folder: links to each other's parents multiply its paths
OWN_ENTRIES = frozenset((".restore-lab", ".restored", ".index", ".lock"))  # this package's own, not counted
PLURALS = {
    "hidden": "hidden",
    "link without target": "links without target",
    "link that leads back": "links that lead back",
    "unreadable folder": "unreadable folders",
    "special file": "special files",
    "file that is no image": "files that are no images",
}


@dataclass(frozen=True, kw_only=True)
class Walk:
    """The files below a folder.

    Attributes:
        files: paths below the folder, with slashes, sorted.
        skipped: number of skipped entries by kind (a key of `PLURALS`, or any other noun).
    """

    files: tuple[str, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)


def walk(root: str | os.PathLike[str], *, depth: int | None = None, hidden: bool = False) -> Walk:
    """List the files in and below a folder.

    Args:
        root: the folder.
        depth: 1 for the folder's own files, 2 for its subfolders' too, and so on; None for all.
        hidden: include hidden files and folders.

    Raises:
        OSError: if the folder itself cannot be read.
        ValueError: if links give a subfolder more than `MAX_PATHS` paths.
    """
    files: list[str] = []
    over: Counter[str] = Counter()
    ways: Counter[tuple[int, ...]] = Counter()
    stack = [(os.fspath(root), "", frozenset((_identity(root),)))]
    while stack:
        place, below, above = stack.pop()
        for entry in _entries(place, over, first=below == ""):
            name = below + entry.name
            if not hidden and (entry.name.startswith(".") or entry.name == "__MACOSX"):
                over["hidden"] += entry.name not in OWN_ENTRIES
                continue
            found = _folder(entry, over)
            if found is None:
                files.append(name)
            elif found and (depth is None or name.count("/") + 1 < depth):
                ways[found] += 1
                if ways[found] > MAX_PATHS:
                    raise ValueError(f"{entry.path}: links lead to this folder in over {MAX_PATHS} ways; remove some")
                if found in above:
                    over["link that leads back"] += 1
                else:
                    stack.append((entry.path, f"{name}/", above | {found}))
    return Walk(files=tuple(sorted(files)), skipped=+over)


def match(pattern: str | os.PathLike[str]) -> tuple[Path, Walk]:
    """The files that match a pattern (`photos/*.jpg`, `photos/**/IMG_*`).

    The folder before the first wildcard, and the matching files below it; none if that folder is missing.
    """
    parts = Path(pattern).parts
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    base, rest = Path(*fixed), parts[len(fixed) :]
    if not base.is_dir():
        return base, Walk(files=())
    found = walk(base, depth=None if "**" in rest else len(rest))
    return base, Walk(files=tuple(name for name in found.files if _fits(name.split("/"), rest)), skipped=found.skipped)


def describe_skipped(skipped: Mapping[str, int]) -> str:
    """The skipped entries as text: "12 files that are no images, 1 link without target"; "" for none."""
    return ", ".join(
        f"{count} {kind if count == 1 else PLURALS.get(kind, f'{kind}s')}"
        for kind, count in sorted(skipped.items())
        if count
    )


def head(names: Sequence[object], *, count: int = 5) -> str:
    """The first few names and the number of further ones."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(str(name) for name in names[:count]) + more


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or (bool(parts) and _fits(parts[1:], pattern)) or len(pattern) == 1
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _entries(place: str, over: Counter[str], *, first: bool) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(place) as found:
            return list(found)
    except OSError:
        if first:
            raise
        over["unreadable folder"] += 1
        return []


def _folder(entry: os.DirEntry[str], over: Counter[str]) -> tuple[int, ...] | None:
    """A folder's device and inode, None for a file, () for a skipped entry."""
    try:
        if entry.is_dir():
            return _identity(entry.path)
        if entry.is_file():
            return None
        dangling = entry.is_symlink() and not os.path.exists(entry.path)
    except OSError:  # e.g. a link to itself
        dangling = entry.is_symlink()
    over["link without target" if dangling else "special file"] += 1
    return ()


def _identity(place: str | os.PathLike[str]) -> tuple[int, ...]:
    found = os.stat(place)
    return found.st_dev, found.st_ino
