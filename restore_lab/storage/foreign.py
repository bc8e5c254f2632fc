"""Reads untrusted files within bounds, or refuses them in one line.

Weights, runs, records and datasets are shared between people, so every reader gets bytes and JSON from here. Pipes and
devices are not opened, links out of a folder (`within`) are not followed, and oversized files are not read. JSON with
too deep nesting or with numbers that are not finite is refused, and a dataclass is built only from values that have the
types of its fields.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import math
import os
import stat
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol, TypeVar

MAX_FILE_BYTES = 256 * 2**20
MAX_DEPTH = 64
LARGEST = 1e30  # of a measured number: sums and squares stay finite
# Keys of a model's config that make a library fetch code or weights from outside the folder.
REMOTE_SETTINGS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
REDIRECT = "adapter_config.json"  # PEFT's: transformers loads the base model that it names instead
VOCABULARIES = ("vocab_file", "merges_file", "tokenizer_file", "spm_file", "source_spm", "target_spm")


class Dataclass(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


T = TypeVar("T", bound=Dataclass)


def bytes_of(path: Path, *, limit: int = MAX_FILE_BYTES, within: Path | None = None) -> bytes:
    """The content of a regular file.

    Args:
        path: the file.
        limit: maximum size in bytes.
        within: folder that links must not leave; None follows all links.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is no regular file, lies outside the folder, or is larger than the limit.
    """
    if within is not None and not leads_inside(path, within):
        raise ValueError(f"{path}: is a link that leads out of {within}; put the file itself there")
    try:
        with open_regular(path) as file:
            data = file.read(limit + 1)
    except NotRegularFile as error:
        raise ValueError(f"{str(path)[:200]}: {error}") from error
    if len(data) > limit:
        raise ValueError(f"{path}: more than {limit >> 20} MiB; no such file is so large")
    return data


class NotRegularFile(ValueError):
    """A path that is no regular file: a folder, a pipe, a device, a circular link."""


@contextlib.contextmanager
def open_regular(path: str | Path) -> Iterator[BinaryIO]:
    """A regular file, open for reading; pipes do not block and devices are not read.

    Raises:
        NotRegularFile: for anything but a regular file.
        OSError: if it does not exist or cannot be read.
    """
    try:
        file = io.BufferedReader(io.FileIO(path, opener=_at_once))
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise NotRegularFile(f"cannot be read as a file ({error.strerror})") from error
        raise
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise NotRegularFile("not a plain file")
        yield file


def _at_once(path: str, flags: int) -> int:
    """Open without blocking: opening a pipe otherwise waits for its writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def leads_inside(path: Path, folder: Path) -> bool:
    """Whether a file lies in a folder after all links are resolved."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def json_of(
    path: Path, *, limit: int = MAX_FILE_BYTES, within: Path | None = None, require_finite: bool = False
) -> Any:
    """The value of a JSON file; for the arguments see `bytes_of` and `parse_json`.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it cannot be read or holds invalid JSON.
    """
    return parse_json(bytes_of(path, limit=limit, within=within), name=path, require_finite=require_finite)


def parse_json(text: str | bytes, *, name: object, require_finite: bool = False) -> Any:
    """A JSON value.

    Args:
        text: UTF-8, with or without a byte order mark.
        name: its name in error messages.
        require_finite: refuse NaN and infinity, which JSON does not define.

    Raises:
        ValueError: for invalid JSON, or more than 64 levels of nesting.
    """
    try:
        plain = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        number = _finite if require_finite else None
        value = json.loads(plain, parse_constant=number, parse_float=number)
    except RecursionError:
        raise ValueError(f"{name}: JSON nested too deep to be read") from None
    except ValueError as error:
        raise ValueError(f"{name}: no JSON that can be read ({' '.join(str(error).split())[:200]})") from error
    if _is_deep(value):
        raise ValueError(f"{name}: JSON nested more than {MAX_DEPTH} deep")
    return value


def json_lines(text: str, *, name: object) -> list[Any]:
    """The values of JSON lines; empty lines are skipped.

    Raises:
        ValueError: with the first invalid line.
    """
    lines = enumerate(text.splitlines(), start=1)
    return [parse_json(line, name=f"{name}, line {number}") for number, line in lines if line.strip()]


def parse_dataclass(cls: type[T], raw: object, *, name: object) -> T:
    """A dataclass from a mapping whose values have the types of its fields.

    Raises:
        ValueError: with the first field that is missing, unknown or of the wrong type.
    """
    hints, required = _fields(cls)
    if not isinstance(raw, Mapping):
        raise ValueError(f"{name}: expected fields such as {', '.join(list(hints)[:3])}, got {type(raw).__name__}")
    odd = [key for key in raw if key not in hints] + [key for key in required if key not in raw]
    odd += [key for key, value in raw.items() if key in hints and not has_type(value, hints[key])]
    if odd:
        raise ValueError(f"{name}: field {str(odd[0])[:60]!r} is missing, unknown or of another type")
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()})


def has_type(value: object, hint: Any) -> bool:
    """Whether a JSON value has an annotation's type; integers count as floats, lists as tuples."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(has_type(value, one) for one in inner)
    if origin is typing.Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if origin is tuple:
        if not isinstance(value, list | tuple) or (inner[-1] is not Ellipsis and len(value) != len(inner)):
            return False
        wanted = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return all(has_type(one, kind) for one, kind in zip(value, wanted, strict=True))
    if isinstance(origin, type):
        return isinstance(value, origin)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST  # false for NaN
    if hint is int and type(value) is int:
        return abs(value) < 2**63
    return type(value) is hint or (hint is type(None) and value is None)


def check_model(folder: Path) -> None:
    """Refuse a model's folder whose config makes a library fetch code, weights or a vocabulary from elsewhere.

    Anything but an existing folder (a hub id) is not checked.

    Raises:
        ValueError: with the file and the key.
    """
    if os.path.lexists(folder / REDIRECT):
        raise ValueError(f"{folder / REDIRECT}: names another model to load in place of this one; merge or remove it")
    for file in sorted(folder.glob("*config.json")):
        queue = [json_of(file)]
        while queue:
            node = queue.pop()
            if isinstance(node, list):
                queue += node
            if not isinstance(node, Mapping):
                continue
            queue += node.values()
            for key in REMOTE_SETTINGS:
                if "/" in str(node.get(key, "")):
                    raise ValueError(f"{file}: {key} names code on the hub; remove the setting")
            for key in VOCABULARIES:
                named = node.get(key)
                if isinstance(named, str) and os.path.exists(named) and not leads_inside(Path(named), folder):
                    raise ValueError(f"{file}: {key} names a file elsewhere; remove the setting")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not finite")
    return value


def _is_deep(value: object) -> bool:
    level: Sequence[object] = [value]
    for _ in range(MAX_DEPTH + 1):
        nodes = [node for node in level if isinstance(node, dict | list)]
        if not nodes:
            return False
        level = [one for node in nodes for one in (node.values() if isinstance(node, dict) else node)]
    return True


@functools.cache
def _fields(cls: type[Dataclass]) -> tuple[dict[str, Any], list[str]]:
    """The types of a dataclass's fields, and the names of the required ones."""
    import dataclasses

    hints = typing.get_type_hints(cls)
    own = dataclasses.fields(cls)
    missing = dataclasses.MISSING
    required = [one.name for one in own if one.default is missing and one.default_factory is missing]
    return {one.name: hints[one.name] for one in own}, required
