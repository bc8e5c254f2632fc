"""Artefacts: folders whose `manifest.json` is written last, so that a folder with a manifest is complete."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

from restore_lab.storage.atomic import write_json_atomic
from restore_lab.storage.foreign import json_of, parse_dataclass
from restore_lab.storage.paths import PACKAGE
from restore_lab.storage.source_code import changes, sources_of

MANIFEST = "manifest.json"
MAX_MANIFEST = 16 * 2**20  # bytes
NAME = re.compile(r"[\w.-]{1,100}")  # identities and kinds: parts of folders' names


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The manifest of a complete artefact folder.

    `kind` is "weights", "restored", "scores", ...; `settings` and `parents` enter the identity; `code` is the version
    of this package that made it (not part of the identity); `extra` is further JSON for readers; `sources` are the
    hashes of other packages' code that `settings` name.
    """

    identity: str
    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    code: str = field(default_factory=lambda: code_version())
    extra: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: str | PurePath) -> None:
        """Mark `folder` complete; call it after everything else is written."""
        write_json_atomic(Path(folder) / MANIFEST, asdict(replace(self, sources=sources_of(self.settings))))

    @classmethod
    def read(cls, folder: str | PurePath) -> Manifest:
        """Read a folder's manifest.

        Raises:
            FileNotFoundError: if the folder is not complete.
            ValueError: if its manifest is invalid.
        """
        place = Path(folder) / MANIFEST
        try:
            found = parse_dataclass(
                cls, json_of(place, limit=MAX_MANIFEST, within=Path(folder), require_finite=True), name=place
            )
        except ValueError as error:
            why = str(error).removeprefix(f"{place}: ")
            raise ValueError(f"{place}: not a manifest ({why}); delete the folder to make it again") from error
        if not all(NAME.fullmatch(name) for name in (found.identity, found.kind, *found.parents)):
            raise ValueError(f"{place}: not a manifest (identities and kind are names); delete the folder")
        return found


def is_complete(folder: str | PurePath, *, identity: str | None = None) -> bool:
    """Whether an artefact is complete and, if given, has this identity."""
    try:
        manifest = Manifest.read(folder)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return identity is None or manifest.identity == identity


def differences(folder: str | PurePath, settings: Mapping[str, Any]) -> str:
    """How a complete folder differs from these settings: " (other sources: mypkg/loss.py)", or ""."""
    manifest = Manifest.read(folder)
    return changes(manifest.settings, settings, sources=manifest.sources)


@functools.cache
def code_version() -> str:
    """The commit of the checkout ("+changes" if modified), else the package's version, else "unknown"."""
    if (PACKAGE.parent / ".git").exists():
        describe = ["describe", "--always", "--tags", "--abbrev=12", "--dirty=+changes"]
        command = ["git", "-C", str(PACKAGE.parent), *describe]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
            return done.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            pass
    try:
        return metadata.version("restore-lab")
    except metadata.PackageNotFoundError:
        return "unknown"
