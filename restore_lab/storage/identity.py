"""Identities of artefacts, and fingerprints of files.

An identity is a hash of every setting that can change an artefact's content and of its parents' identities. A key of
this package's `_target_` nodes that equals its constructor's default is left out, so a new setting whose default is the
old behaviour keeps old identities valid (never change such a default; set the new behaviour in the yaml). Paths enter
as fingerprints of their content, or by name (named.py); loggers, output folders and devices do not enter. Code of other
packages enters by its content (source_code.py).
"""

from __future__ import annotations

import functools
import glob
import hashlib
import importlib
import inspect
import json
import math
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from restore_lab.storage.named import PREREQUISITE, below_datasets, prerequisite_name
from restore_lab.storage.notes import read_note
from restore_lab.storage.paths import PACKAGE, place_of
from restore_lab.storage.source_code import source_hash
from restore_lab.storage.walk import match, walk

if TYPE_CHECKING:
    from omegaconf import DictConfig

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


def identity(settings: Mapping[str, Any], parents: Sequence[str] = ()) -> str:
    """An artefact's identity, 16 hex characters.

    Args:
        settings: plain values, as of `plain_settings`; 1 and 1.0 are one value.
        parents: identities of the artefacts that this one is made from, in order.

    Raises:
        ValueError: for a value without a canonical form (a live object, a tensor), with its key.
    """
    canonical = [_canonical(settings, ""), list(parents)]
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plain_settings(cfg: DictConfig, keys: Iterable[str]) -> dict[str, Any]:
    """Some settings of a config as plain values; they are resolved in it, since they interpolate other settings."""
    return {
        key: OmegaConf.to_container(cfg[key], resolve=True) if OmegaConf.is_config(cfg[key]) else cfg[key]
        for key in keys
    }


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
