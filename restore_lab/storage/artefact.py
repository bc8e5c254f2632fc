"""Artefacts: identities, fingerprints, manifests.

An artefact is a folder whose `manifest.json` is written last, so a folder with a manifest is complete. Its identity is
a hash of every setting that can change its content and of its parents' identities. A key of this package's `_target_`
nodes that equals its constructor's default is left out, so a new setting whose default is the old behaviour keeps old
identities valid (never change such a default; set the new behaviour in the yaml). Paths enter as fingerprints of their
content, or by name (named.py); loggers, output folders and devices do not enter. Code of other packages enters by its
content (source_code.py).
"""

from __future__ import annotations

import functools
import glob
import hashlib
import importlib
import inspect
import json
import math
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

from restore_lab.storage.foreign import json_of, parse_dataclass
from restore_lab.storage.named import PREREQUISITE, below_datasets, prerequisite_name, prerequisite_path
from restore_lab.storage.notes import read_note
from restore_lab.storage.source_code import changes, source_hash, sources_of
from restore_lab.storage.walk import match, walk
from restore_lab.system.faults import name_file

MANIFEST = "manifest.json"
MAX_MANIFEST = 16 * 2**20  # bytes
NAME = re.compile(r"[\w.-]{1,100}")  # identities and kinds: parts of folders' names
PACKAGE = Path(__file__).resolve().parents[1]
IGNORED_KEYS = frozenset(
    ("logger", "hydra", "output", "output_dir", "output_folder", "run_dir", "runs_dir", "save_dir")
    + ("cache", "cache_dir", "cache_latents", "cache_gigabytes")
    + ("fused",)  # the optimiser's kernel
    + ("device", "devices", "accelerator", "workers", "num_workers", "progress", "format", "trusted_packages")
)
PATH_KEYS = frozenset(
    ("path", "paths", "root", "roots", "folder", "folders", "file", "files", "input", "weights", "checkpoint")
)
PATH_ENDINGS = ("_path", "_root", "_folder", "_file", "_dir")


def identity(
    settings: Mapping[str, Any], parents: Sequence[str] = (), *, defaults: Mapping[str, Any] | None = None
) -> str:
    """The artefact's identity, 16 hex characters, from its settings and its parents.

    Args:
        settings: plain values (`OmegaConf.to_container(cfg, resolve=True)`); 1 and 1.0 are one value.
        parents: identities of the artefacts that this one is made from, in order.
        defaults: defaults of top-level keys without a constructor; a key that equals its default is left out.

    Raises:
        ValueError: for a value without a canonical form (a live object, a tensor), with its key.
    """
    kept = {
        key: value
        for key, value in settings.items()
        if not (defaults and key in defaults and _canonical(value, key) == _canonical(defaults[key], key))
    }
    text = json.dumps([_canonical(kept, ""), list(parents)], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def place_of(text: str) -> Path:
    """The file or folder of a config's path; "asset:NAME" ships with the package (for "made:" see named.py)."""
    if text.startswith("asset:"):
        return PACKAGE / "assets" / text.removeprefix("asset:")
    return Path(prerequisite_path(text)).expanduser()


def fingerprint(path: str | PurePath) -> str:
    """32 hex characters for the content of a file, a folder or a pattern: bytes and names below it.

    Its own name and dates do not count. Links are followed. Hidden files, a folder's README.md and special files are
    skipped. A file's hash is cached while its size and modification time stay the same (in this process; across
    processes for a file with a note in the user's cache, notes.py).

    Raises:
        FileNotFoundError: if `path` does not exist.
        ValueError: if `path` is a pipe or a device.
    """
    place = Path(path)
    if place.exists() and not place.is_dir():
        return _file_hash(place)
    base, found = (place, walk(place)) if place.is_dir() else match(place)
    if not (found.files or place.is_dir()):
        raise FileNotFoundError(2, "no such file or folder to take the fingerprint of", str(place))
    total = hashlib.sha256()
    for name in found.files:
        if not {"__pycache__", "README.md"} & set(name.split("/")):
            total.update(f"{name}\0{_file_hash(base / name)}\n".encode(errors="surrogateescape"))
    return total.hexdigest()[:32]


def write_bytes_atomic(path: str | PurePath, data: bytes) -> None:
    """Write a file atomically: readers see the old content or the new, also if the process is killed."""
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name[:30]}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp creates files that only their owner can read
        os.replace(temporary, place)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        name_file(error, place)
        raise


def write_json_atomic(path: str | PurePath, data: Any) -> None:
    """`write_bytes_atomic` of `json_bytes`."""
    write_bytes_atomic(path, json_bytes(data))


def json_bytes(data: Any) -> bytes:
    """Indented JSON; NaN is refused, which JSON does not define."""
    return (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


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


def _canonical(value: Any, key: str) -> Any:
    """The canonical JSON form of a value: equal settings have equal forms."""
    if isinstance(value, Mapping):
        return _canonical_mapping(value)
    if isinstance(value, list | tuple):
        return [_canonical(entry, key) for entry in value]
    if isinstance(value, str) and value.startswith(PREREQUISITE):
        return prerequisite_name(value)
    if isinstance(value, PurePath) or (isinstance(value, str) and _is_path_key(key)):
        return _canonical_path(str(value))
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            return {"float": str(value)}
        return int(value) if value.is_integer() else value
    raise ValueError(f"setting {key!r} is {type(value).__name__}, which has no identity; give plain values")


def _canonical_mapping(node: Mapping[str, Any]) -> dict[str, Any]:
    defaults = _defaults(node["_target_"]) if isinstance(node.get("_target_"), str) else {}
    kept: dict[str, Any] = {}
    if isinstance(node.get("datasets_dir"), str):
        node = below_datasets(node, node["datasets_dir"])
    for name, value in node.items():
        if str(name) in IGNORED_KEYS:
            continue
        entry = _canonical(value, str(name))
        if name in defaults and _comparable(defaults[name], str(name)) == (True, entry):
            continue
        kept[str(name)] = entry
    return kept | source_hash(node.get("_target_"))


def _comparable(default: Any, key: str) -> tuple[bool, Any]:
    try:
        return True, _canonical(default, key)
    except ValueError:
        return False, None


@functools.cache
def _defaults(target: str) -> Mapping[str, Any]:
    """A constructor's defaults; none for other packages, whose defaults change with their versions."""
    if not target.startswith(f"{PACKAGE.name}."):
        return {}
    parts = target.split(".")
    length = len(parts)
    while length > 1 and not PACKAGE.parent.joinpath(*parts[:length]).with_suffix(".py").is_file():
        length -= 1
    try:
        found: Any = functools.reduce(getattr, parts[length:], importlib.import_module(".".join(parts[:length])))
        parameters = inspect.signature(found).parameters
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"_target_ {target!r} does not exist ({error})") from error
    return {key: entry.default for key, entry in parameters.items() if entry.default is not inspect.Parameter.empty}


def _is_path_key(key: str) -> bool:
    return key in PATH_KEYS or key.endswith(PATH_ENDINGS)


def _canonical_path(text: str) -> Any:
    """The fingerprint of an existing file or folder; any other text (a hub id) unchanged."""
    place = place_of(text)
    there = text and (place.exists() or (glob.has_magic(text) and match(place)[1].files))
    return {"content": fingerprint(place)} if there else text


def _file_hash(path: Path) -> str:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # reading a pipe would block, a device has no end
        raise ValueError(f"{path}: a pipe or a device has no fingerprint; remove it")
    return _hash_of(str(path.resolve()), found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@functools.lru_cache(maxsize=1_000_000)
def _hash_of(path: str, size: int, mtime_ns: int, ctime_ns: int) -> str:
    note = read_note(Path(path)) if path.endswith(".tar") else None  # saves reading terabytes of shards again
    if note is not None:
        return note["sha256"][:32]
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
