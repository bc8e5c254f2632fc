"""Artefacts: what commands make, each in a folder with a manifest.

A command plans its artefacts before it builds anything, so a table or a sweep knows which of them exist already. The
manifest is written last, so a folder with a manifest is complete.
"""

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
IDENTIFIER = re.compile(r"[\w.-]{1,100}")  # identities and kinds: parts of folders' names
SCORES, DESCRIPTION, IMAGES, CAPTIONS, SHARDS = "scores", "description", "images", "captions", "shards"


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """What a command makes, known before it is made.

    Attributes:
        kind: `SCORES`, `DESCRIPTION`, ..., or for weights the stage of training that makes them.
        identity: the hash of `settings` and `parents` (identity.py).
        folder: need not exist yet.
        settings: all that can change the content.
        parents: identities of the artefacts that this one is made from.
    """

    kind: str
    identity: str
    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    parents: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind} {self.identity}"

    @property
    def has_weights(self) -> bool:
        """Whether a training makes it."""
        return self.kind not in (SCORES, DESCRIPTION, IMAGES, CAPTIONS, SHARDS)

    def is_complete(self) -> bool:
        """Whether the artefact is in its folder."""
        return is_complete(self.folder, identity=self.identity)

    def finish(self, **extra: Any) -> None:
        """Mark the folder complete; call it after everything else is written.

        Args:
            extra: see `Manifest`.
        """
        Manifest(
            identity=self.identity, kind=self.kind, settings=self.settings, parents=self.parents, extra=extra
        ).write(self.folder)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The manifest of a complete artefact.

    Attributes:
        identity, kind, settings, parents: as in `Artefact`.
        code: version of this package that made it; not part of the identity.
        extra: further JSON for readers.
        sources: hashes of other packages' code that `settings` name.
    """

    identity: str
    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    code: str = field(default_factory=lambda: code_version())
    extra: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: str | PurePath) -> None:
        """Write the manifest to a folder."""
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
        if not all(IDENTIFIER.fullmatch(name) for name in (found.identity, found.kind, *found.parents)):
            raise ValueError(f"{place}: not a manifest (identities and kind are names); delete the folder")
        return found

    def changes(self, settings: Mapping[str, Any]) -> str:
        """How other settings differ from these: " (other sources: mypkg/loss.py)", or ""."""
        return changes(self.settings, settings, sources=self.sources)


def is_complete(folder: str | PurePath, *, identity: str | None = None) -> bool:
    """Whether a folder has a complete artefact and, if given, one of this identity."""
    try:
        manifest = Manifest.read(folder)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return identity is None or manifest.identity == identity


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
