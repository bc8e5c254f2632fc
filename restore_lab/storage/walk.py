"""What lies in and below a folder: the one walk that everything takes that reads folders.

Links to files and folders are followed. A link to a folder that it lies in is a loop, known by device and inode, and is
passed over, as are hidden files and folders, `__MACOSX`, links without target, folders that cannot be read, and what is
no file (pipes, sockets). All of that is counted by kind. The order is that of the paths as text. Without torch.
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

MOST_WAYS = 1000  # to one folder: links that cross each other have more ways than any disk can list
NOTES = frozenset((".restore-lab", ".restored", ".index", ".lock"))  # our own, of which nobody need hear
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
        passed_over: how many entries were left, by kind (a key of `PLURALS`, or any other noun).
    """

    files: tuple[str, ...]
    passed_over: Mapping[str, int] = field(default_factory=dict)


def walk(root: str | os.PathLike[str], *, depth: int | None = None, hidden: bool = False) -> Walk:
    """List the files in and below a folder.

    Args:
        root: the folder.
        depth: 1 for the files in it, 2 for those of the folders in it too, and so on; None for all.
        hidden: take hidden files and folders too, for a reader that must miss nothing.

    Raises:
        OSError: the folder itself cannot be read.
        ValueError: more ways lead to a folder below it than any list could hold.
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
                over["hidden"] += entry.name not in NOTES
                continue
            found = _folder(entry, over)
            if found is None:
                files.append(name)
            elif found and (depth is None or name.count("/") + 1 < depth):
                ways[found] += 1
                if ways[found] > MOST_WAYS:
                    raise ValueError(f"{entry.path}: links lead to this folder in over {MOST_WAYS} ways; remove some")
                if found in above:
                    over["link that leads back"] += 1
                else:
                    stack.append((entry.path, f"{name}/", above | {found}))
    return Walk(files=tuple(sorted(files)), passed_over=+over)


def match(pattern: str | os.PathLike[str]) -> tuple[Path, Walk]:
    """The files that fit a pattern (`photos/*.jpg`, `photos/**/IMG_*`): the folder before its first wildcard, and what
    fits below that folder. Nothing fits in a folder that is not there.
    """
    parts = Path(pattern).parts
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    base, rest = Path(*fixed), parts[len(fixed) :]
    if not base.is_dir():
        return base, Walk(files=())
    found = walk(base, depth=None if "**" in rest else len(rest))
    return base, Walk(
        files=tuple(name for name in found.files if _fits(name.split("/"), rest)), passed_over=found.passed_over
    )


def describe(passed_over: Mapping[str, int]) -> str:
    """What was passed over, for people: "12 files that are no images, 1 link without target"; empty for nothing."""
    return ", ".join(
        f"{count} {kind if count == 1 else PLURALS.get(kind, f'{kind}s')}"
        for kind, count in sorted(passed_over.items())
        if count
    )


def some(names: Sequence[object], *, count: int = 5) -> str:
    """The first few of some names, and how many more there are."""
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
    """The identity of a folder, None for a file, and () for what is counted as passed over."""
    try:
        if entry.is_dir():
            return _identity(entry.path)
        if entry.is_file():
            return None
        dangling = entry.is_symlink() and not os.path.exists(entry.path)
    except OSError:  # a link to itself, say
        dangling = entry.is_symlink()
    over["link without target" if dangling else "special file"] += 1
    return ()


def _identity(place: str | os.PathLike[str]) -> tuple[int, ...]:
    found = os.stat(place)
    return found.st_dev, found.st_ino
