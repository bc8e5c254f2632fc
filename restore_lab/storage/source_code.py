"""Hashes of other packages' code: an edited loss is another loss and gives other weights.

If a setting's `_target_` names a package that is neither this one nor one of `LIBRARIES`, all importable files of that
top-level package (or module) enter the identity, links included: sources and extension modules, but neither data files
nor the packages that it imports. They are read once per process, like imports.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES
from pathlib import Path

from restore_lab.storage.walk import head, walk

LIBRARIES = frozenset(("restore_lab", "torch", "diffusers", "lightning"))  # `_target_`s that need no trust


def sources_of(settings: object) -> dict[str, str]:
    """The code of the other packages that these settings name: {"mypkg/loss.py": hash}."""
    found: dict[str, str] = {}
    for target in _targets(settings):
        found |= hash_files(target.partition(".")[0])
    return found


def source_hash(target: object) -> dict[str, str]:
    """The entries that another package's `_target_` adds to its node; empty for this package and the libraries."""
    files = hash_files(target.partition(".")[0]) if isinstance(target, str) else {}
    return {"_sources_": hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:32]} if files else {}


@functools.cache
def hash_files(package: str) -> Mapping[str, str]:
    """The hashes of a top-level package's files; empty for a library and for a missing package.

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


def changes(before: Mapping[str, object], after: Mapping[str, object], *, sources: Mapping[str, str]) -> str:
    """The difference of an existing artefact from a wanted one: " (other sources: mypkg/loss.py)", or "".

    Args:
        before: the existing artefact's settings.
        after: the wanted artefact's settings.
        sources: the existing artefact's `sources_of`.
    """
    said = []
    now = sources_of(after)
    if sources != now:
        files = [name for name in {**sources, **now} if sources.get(name) != now.get(name)]
        said.append(f"other sources: {head(files, count=4)}")
    old, new = dict(_leaves(before)), dict(_leaves(after))
    other = [place for place in {**old, **new} if old.get(place, _ABSENT) != new.get(place, _ABSENT)]
    if other:
        said.append(f"other settings: {head(other, count=4)}")
    return f" ({'; '.join(said)})" if said else ""


_ABSENT = object()


def _is_code(name: str) -> bool:
    return name.endswith((*SOURCE_SUFFIXES, *EXTENSION_SUFFIXES))


def _targets(node: object) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _targets(value)


def _leaves(node: object, place: str = "") -> Iterator[tuple[str, object]]:
    """Values by dotted key."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{place}.{key}" if place else str(key))
    else:
        yield place, list(node) if isinstance(node, list | tuple) else node
