"""Where each sample of a WebDataset tar lies: keys, and offset and length of every member, by one sequential scan.

A sample is what shares a name up to its first dot ("trip/cat.jpg", "trip/cat.txt"); the rest is the member's kind.
"%2E" in a name stands for a dot of the key. The index is a note in the user's own cache (storage/notes.py), good while
size and times of the tar stay. A tar is data of a stranger: nothing is ever extracted, and one with a member that a set
of images has no use for (links, devices, paths that lead elsewhere, a name twice), or that is cut off or damaged, is
refused as a whole, by the member's name.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes

import numpy as np

from restore_lab.storage.artefact import write_bytes_atomic
from restore_lab.storage.notes import note_place, read_note, stamp

log = logging.getLogger(__name__)
FORMAT = 1
CHUNK = 2**20
BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class TarIndex:
    """The samples of one tar.

    Attributes:
        size: of the tar in bytes.
        keys: of the samples, in the tar's order.
        offsets: by kind of member, in bytes from the tar's start, one a sample, -1 where it has none.
        lengths: likewise, in bytes.
    """

    size: int
    keys: Sequence[str]
    offsets: Mapping[str, np.ndarray]
    lengths: Mapping[str, np.ndarray]


def index_of(tar: Path) -> TarIndex:
    """The index of a tar, made (and noted) if there is none; of several processes one makes it.

    Raises:
        ValueError: if the tar is refused; the line names the member.
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


def indexed(tar: Path) -> bool:
    """Whether a tar is there and has its index."""
    return tar.is_file() and _good(tar) is not None


def tar_name(key: str) -> str:
    """A key as the name of a sample: what a tar's name gives a meaning to is written in percents."""
    plain = (c if c.isprintable() and c not in "%." else _percents(c) for c in key)
    return "".join(plain)


def scan(tar: Path) -> dict[str, Any]:
    """The note on a tar, by reading it once from start to end.

    Raises:
        ValueError: see `index_of`.
    """
    before, found, end = stamp(tar), _Samples(tar), 0
    with open(tar, "rb") as file:
        hashing = _Hashing(file)
        try:
            with tarfile.open(fileobj=hashing, mode="r|", bufsize=CHUNK) as members:
                for member in members:
                    if member.offset < end or member.size < 0 or member.offset_data + member.size > before["size"]:
                        raise ValueError(f"{tar}: member {member.name!r} has no place in {before['size']} bytes")
                    end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                    found.add(member)
                    members.members.clear()  # tarfile would keep them all
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
        """Take in one member.

        Raises:
            ValueError: if it is one that no set of images holds.
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
            return  # hidden files and those without a kind belong to no sample
        number = self.numbers.setdefault(key, len(self.numbers))
        if number in self.members.setdefault(kind.lower(), {}):
            raise ValueError(f"{self.tar}: member {member.name!r} is there twice")
        self.members[kind.lower()][number] = (member.offset_data, member.size)

    def note(self) -> dict[str, Any]:
        """Keys, and the columns of each kind."""
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
        return {"format": FORMAT, "keys": list(self.numbers), "members": columns}


class _Hashing:
    """A file that hashes what is read of it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.sha256.update(data)
        return data


def _good(tar: Path) -> dict[str, Any] | None:
    """The note on a tar if it is an index that fits it; another version may have written it, or a disk damaged it."""
    note = read_note(tar)
    try:
        if note is None or note["format"] != FORMAT or not all(isinstance(key, str) for key in note["keys"]):
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
    """The place of a note, once it can be written.

    Raises:
        ValueError: if it cannot.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.with_name(f"{place.name}.lock").touch()
    except OSError as error:
        raise ValueError(f"{tar}: its index cannot be written to {place}; set XDG_CACHE_HOME") from error
    return place


def _check_end(file: BinaryIO, tar: Path, end: int) -> None:
    """tarfile stops without a word at a header that is none; what follows the last member has to be an end."""
    file.seek(end)
    tail = file.read(CHUNK)
    if len(tail) < BLOCK or any(tail):
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
