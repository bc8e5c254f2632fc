"""The index of a WebDataset tar: keys, and offset and length of every member, from one sequential scan.

The members of a sample share the name up to its first dot ("trip/cat.jpg", "trip/cat.txt"); the rest is the member's
kind. "%2E" in a name encodes a dot of the key. The index is stored in the user's cache (storage/notes.py) and is valid
while the tar's size and times do not change. Tars are untrusted: nothing is extracted, and a tar that is truncated,
damaged, or has a member that no image dataset needs (a link, a device, a path outside the folder, a duplicate name) is
rejected as a whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes

import numpy as np

from restore_lab.storage.atomic import write_bytes_atomic
from restore_lab.storage.notes import note_place, read_note, stamp

log = logging.getLogger(__name__)
INDEX_FORMAT = 1
CHUNK = 2**20
TAR_BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class TarIndex:
    """The samples of one tar.

    Attributes:
        size: of the tar in bytes.
        keys: of the samples, in the tar's order.
        offsets: by kind of member, in bytes from the tar's start, one per sample, -1 for none.
        lengths: by kind of member, in bytes, one per sample, -1 for none.
    """

    size: int
    keys: Sequence[str]
    offsets: Mapping[str, np.ndarray]
    lengths: Mapping[str, np.ndarray]


def index_of(tar: Path) -> TarIndex:
    """The index of a tar, from the cache or from a scan, which one of several processes makes.

    Raises:
        ValueError: if the tar is rejected.
    """
    from filelock import FileLock

    note = _good(tar)
    if note is None:
        place = _writable(note_place(tar), tar)
        with FileLock(place.with_name(f"{place.name}.lock")):
            note = _good(tar)
            if note is None:
                log.info("%s: reading it once for its index", tar)
                note = scan(tar)
                write_bytes_atomic(place, json.dumps(note).encode())
    columns = {kind: (np.array(c["offset"], np.int64), np.array(c["length"], np.int64)) for kind, c in _kinds(note)}
    return TarIndex(
        size=note["size"],
        keys=note["keys"],
        offsets={kind: offset for kind, (offset, _) in columns.items()},
        lengths={kind: length for kind, (_, length) in columns.items()},
    )


def tar_name(key: str) -> str:
    """The name of a sample in a tar: its key, with special characters percent-encoded."""
    plain = (c if c.isprintable() and c not in "%." else _percents(c) for c in key)
    return "".join(plain)


def scan(tar: Path) -> dict[str, Any]:
    """The index of a tar as plain values, by reading it once.

    Raises:
        ValueError: if the tar is rejected.
    """
    before, found, end = stamp(tar), _Samples(tar), 0
    with open(tar, "rb") as file:
        hashing = _Hashing(file)
        try:
            with tarfile.open(fileobj=hashing, mode="r|", bufsize=CHUNK) as opened:
                archive: Any = opened  # the types of tarfile lack `members`
                for member in archive:
                    if member.offset < end or member.size < 0 or member.offset_data + member.size > before["size"]:
                        raise ValueError(f"{tar}: member {member.name!r} has no place in {before['size']} bytes")
                    end = member.offset_data + -(-member.size // TAR_BLOCK) * TAR_BLOCK
                    found.add(member)
                    archive.members.clear()  # tarfile keeps them all
        except (tarfile.TarError, EOFError, OSError, OverflowError) as error:
            raise ValueError(
                f"{tar}: not a tar that can be read ({' '.join(str(error).split())}){_kind(tar)}"
            ) from error
        while hashing.read(CHUNK):
            pass
        _check_end(file, tar, end)
    return found.note() | before | {"sha256": hashing.sha256.hexdigest()}


class _Samples:
    """Collects the members of a tar by sample."""

    def __init__(self, tar: Path) -> None:
        self.tar = tar
        self.numbers: dict[str, int] = {}
        self.members: dict[str, dict[int, tuple[int, int]]] = {}

    def add(self, member: tarfile.TarInfo) -> None:
        """Add one member.

        Raises:
            ValueError: for a member that no image dataset needs.
        """
        if member.isdir():
            return
        if not member.isreg() or member.issparse():
            raise ValueError(f"{self.tar}: member {member.name!r} is no plain file; shards hold plain files alone")
        folder, slash, base = member.name.removeprefix("./").rpartition("/")
        stem, dot, kind = base.partition(".")
        key = unquote_to_bytes((folder + slash + stem).encode("utf-8", "surrogateescape"))
        key = key.decode("utf-8", "surrogateescape")
        parts = PurePosixPath(f"{folder}{slash}{base}").parts + PurePosixPath(key).parts
        if ".." in parts or "/" in parts or not member.name.isprintable():
            raise ValueError(f"{self.tar}: member {member.name!r} has a name that leads elsewhere, or cannot be shown")
        if not stem or not dot:
            return  # hidden files and names without a dot belong to no sample
        number = self.numbers.setdefault(key, len(self.numbers))
        if number in self.members.setdefault(kind.lower(), {}):
            raise ValueError(f"{self.tar}: member {member.name!r} is there twice")
        self.members[kind.lower()][number] = (member.offset_data, member.size)

    def note(self) -> dict[str, Any]:
        """The index as plain values: keys, and offsets and lengths by kind."""
        if not self.numbers:
            raise ValueError(f"{self.tar}: holds no samples; expected members such as 000001.jpg and 000001.txt")
        numbers = range(len(self.numbers))
        columns = {
            kind: {
                "offset": [there.get(number, (-1, -1))[0] for number in numbers],
                "length": [there.get(number, (-1, -1))[1] for number in numbers],
            }
            for kind, there in self.members.items()
        }
        return {"format": INDEX_FORMAT, "keys": list(self.numbers), "members": columns}


class _Hashing(io.RawIOBase):
    """A file that hashes the bytes read from it."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.file, self.sha256 = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.sha256.update(data)
        return data


def _good(tar: Path) -> dict[str, Any] | None:
    """The cached index of a tar; None if there is none, or it is invalid, damaged or of another version."""
    note = read_note(tar)
    try:
        if note is None or note["format"] != INDEX_FORMAT or not all(isinstance(key, str) for key in note["keys"]):
            return None
        for _, column in _kinds(note):
            offset, length = np.array(column["offset"], np.int64), np.array(column["length"], np.int64)
            inside = (offset >= 0) & (length >= 0) & (offset + length <= note["size"])
            if len(offset) != len(note["keys"]) or not np.all(inside | ((offset == -1) & (length == -1))):
                return None
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        return None
    return note


def _kinds(note: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield from note["members"].items()


def _writable(place: Path, tar: Path) -> Path:
    """The path of the index, after a check that it can be written.

    Raises:
        ValueError: if it cannot be written.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.with_name(f"{place.name}.lock").touch()
    except OSError as error:
        raise ValueError(f"{tar}: its index cannot be written to {place}; set XDG_CACHE_HOME") from error
    return place


def _check_end(file: BinaryIO, tar: Path, end: int) -> None:
    """Check that only zeros follow the last member: tarfile stops silently at an invalid header."""
    file.seek(end)
    tail = file.read(CHUNK)
    if len(tail) < TAR_BLOCK or any(tail):
        raise ValueError(f"{tar}: cut off or damaged at byte {end} of {tar.stat().st_size}; copy it again")
    while tail := file.read(CHUNK):
        if any(tail):
            raise ValueError(f"{tar}: something follows its end at byte {end}; tars are not put together by appending")


def _kind(tar: Path) -> str:
    with open(tar, "rb") as file:
        head = file.read(6)
    packed = head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
    return "; it is compressed, and compressed tars cannot be read by offset: decompress it" if packed else ""


def _percents(letter: str) -> str:
    return "".join(f"%{byte:02X}" for byte in letter.encode("utf-8", "surrogateescape"))
