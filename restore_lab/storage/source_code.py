"""The code of packages outside this one, by content: an edited loss is another loss, and other weights.

The rule: where a `_target_` of a setting names a package that is not ours and none of the libraries that every run has,
all files of that top-level package (or module) that Python can import count, wherever in it they are, behind links
too: sources and extension modules, not data files, nor other packages that it imports. They are read once per process,
as imports are.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES
from pathlib import Path
from typing import Any

from restore_lab.storage.walk import walk

LIBRARIES = frozenset(("restore_lab", "torch", "diffusers", "lightning"))  # `_target_`s that need no trust
LISTED = 4  # names in a line


def sources_of(settings: Any) -> dict[str, str]:
    """What the outside packages of these settings hold: {"mypkg/loss.py": hash}; empty where there are none."""
    found: dict[str, str] = {}
    for target in _targets(settings):
        found |= files_of(target.partition(".")[0])
    return found


def source_hash(target: Any) -> dict[str, str]:
    """What the package of an outside `_target_` adds to its node; empty for ours, for the libraries', and for none."""
    files = files_of(target.partition(".")[0]) if isinstance(target, str) else {}
    return {"_sources_": hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:32]} if files else {}


@functools.cache
def files_of(package: str) -> Mapping[str, str]:
    """The files of a top-level package outside ours, with their hashes; empty for a library, and for none that exists.

    Args:
        package: its name, without dots; it is not imported.
    """
    if package in LIBRARIES or not package.isidentifier() or package == "__main__":
        return {}
    spec = importlib.util.find_spec(package)
    if spec is None:
        return {}
    folders = [Path(place) for place in spec.submodule_search_locations or ()]
    files = [folder / name for folder in folders if folder.is_dir() for name in walk(folder).files if _is_code(name)]
    if not folders and spec.origin and Path(spec.origin).is_file():
        files, folders = [Path(spec.origin)], [Path(spec.origin)]
    homes = [folder.parent for folder in folders]
    named = {next(f.relative_to(home).as_posix() for home in homes if f.is_relative_to(home)): f for f in files}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest()[:32] for name, file in sorted(named.items())}


def changes(before: Mapping[str, Any], after: Mapping[str, Any], *, sources: Mapping[str, str]) -> str:
    """How what is there differs from what was to be there: " (other sources: mypkg/loss.py)", perhaps empty.

    Args:
        before: the settings of what is there.
        after: the settings of what was to be there.
        sources: the outside code of what is there, as `sources_of` gave it.
    """
    said = []
    now = sources_of(after)
    if sources != now:
        said.append(
            f"other sources: {_listed(name for name in {**sources, **now} if sources.get(name) != now.get(name))}"
        )
    old, new = dict(_leaves(before)), dict(_leaves(after))
    other = [place for place in {**old, **new} if old.get(place, _ABSENT) != new.get(place, _ABSENT)]
    if other:
        said.append(f"other settings: {_listed(other)}")
    return f" ({'; '.join(said)})" if said else ""


_ABSENT = object()


def _is_code(name: str) -> bool:
    return name.endswith((*SOURCE_SUFFIXES, *EXTENSION_SUFFIXES))


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _targets(value)


def _leaves(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted place."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{place}.{key}" if place else str(key))
    else:
        yield place, list(node) if isinstance(node, list | tuple) else node


def _listed(names: Any) -> str:
    found = list(names)
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return ", ".join(found[:LISTED]) + more
