"""WebDataset shards with random access by byte offset. `data=shards data.root=FOLDER`.

A sample is `key.jpg` (or another image format) with optional `key.txt`, its caption, and `key.json`; a pair is
`key.hq.png` and `key.lq.png`. Each tar is indexed once (tar_index.py). Since samples depend on the position in the
stream only (sampler.py), every sample is read exactly once per epoch for any number of ranks and workers, and a run can
resume within an epoch. The webdataset package reads streams: it assigns whole shards to ranks and workers, whose epochs
differ in length or are padded by sampling with replacement, and it cannot resume within a stream.
`window` trades shuffling for sequential reads: null permutes all samples (each read is a seek, fine on a local SSD);
a number permutes the shards, then the samples within windows of that size, so that few tars are read at a time.
"""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from restore_lab.config.kinds import Count
from restore_lab.config.validate import check_arguments
from restore_lab.data.image_io import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    BadImage,
    Header,
    decode_header,
    decode_image,
    resize_image,
)
from restore_lab.data.sampler import permutation
from restore_lab.data.sources.captions import CAPTION_KEYS
from restore_lab.data.sources.folder import Role
from restore_lab.data.sources.tar_index import TarIndex, index_of
from restore_lab.random import rng
from restore_lab.storage.foreign import parse_json
from restore_lab.storage.walk import walk
from restore_lab.types import Picture

OPEN_FILES = 32
_HQ, _LQ, _TEXT, _JSON = range(4)  # columns of the table of offsets


@check_arguments
class ShardsSource:
    """The samples of a folder of tars, or of one tar.

    Args:
        root: the folder or the tar.
        role: "hq" if single images are clean, "lq" if they are degraded.
        captions: whether to read captions.
        window: samples in a shuffle window; null for all.
        image: image format ("jpg", "png", ...) if samples have several; null for the only one.
        max_pixels: larger images count as bad files.
        max_bytes: longer members count as bad files.

    Raises:
        ValueError: there are no tars, one is invalid, or no sample has an image.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        role: Role = "hq",
        captions: bool = True,
        window: Count | None = None,
        image: str | None = None,
        max_pixels: int = MAX_PIXELS,
        max_bytes: int = 2**29,
    ) -> None:
        self._tars, self._role, self._captions, self._window = list_tars(root), role, captions, window
        self._max_pixels, self._max_bytes = max_pixels, max_bytes
        indices = [index_of(tar) for tar in self._tars]
        self._sizes = [index.size for index in indices]
        tables = [_table(tar, index, role=role, image=image) for tar, index in zip(self._tars, indices, strict=True)]
        whole = [(table[_HQ, :, 0] >= 0) | (table[_LQ, :, 0] >= 0) for table in tables]
        self._table = np.concatenate([table[:, good] for table, good in zip(tables, whole, strict=True)], axis=1)
        self._shard = np.concatenate([np.full(good.sum(), n, np.int32) for n, good in enumerate(whole)])
        if not len(self):
            kinds = sorted({kind for index in indices for kind in index.offsets})
            raise ValueError(f"{root}: no sample of {len(self._tars)} tars has an image; they have {', '.join(kinds)}")
        self._keys = _Strings(_keys(self._tars, indices, whole))
        self._files: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._shard)

    def keys(self) -> list[str]:
        """One key per sample, in the tars' order; prefixed with the tar's name if two tars share a key."""
        return [self._keys[index] for index in range(len(self))]

    def header(self, index: int) -> Header:
        """The size and frames of a sample's image (of a pair's HQ), without decoding it.

        Raises:
            BadImage: it cannot be read.
        """
        column = _HQ if self._table[_HQ, index, 0] >= 0 else _LQ
        offset, length = (int(number) for number in self._table[column, index])
        member = _Member(self._file(int(self._shard[index])), offset=offset, length=length)
        return decode_header(io.BufferedReader(member), name=self._name(index))

    def read(self, index: int, *, epoch: int = 0) -> Picture:
        """Decode one sample; `epoch` is ignored.

        Raises:
            BadImage: an image cannot be read, or a member is too long.
        """
        hq_HWC, lq_HWC = self._image(_HQ, index), self._image(_LQ, index)
        if hq_HWC is not None and lq_HWC is not None:
            lq_HWC = resize_image(lq_HWC, height=hq_HWC.shape[0], width=hq_HWC.shape[1])
        caption = self._caption(index) if self._captions else ""
        return Picture(hq_HWC=hq_HWC, lq_HWC=lq_HWC, caption=caption, key=self._keys[index])

    def order(self, *, seed: int, epoch: int) -> np.ndarray:
        """The order of the samples in one epoch (see `window`)."""
        if self._window is None:
            return permutation(len(self), seed=seed, epoch=epoch)
        draw, ends = rng(seed, "order", epoch), np.cumsum(np.bincount(self._shard, minlength=len(self._tars)))
        shards = draw.permutation(len(self._tars))
        order = np.concatenate([np.arange(int(ends[n - 1]) if n else 0, int(ends[n])) for n in shards])
        for first in range(0, len(order), self._window):
            draw.shuffle(order[first : first + self._window])
        return order

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the open files."""
        return {**self.__dict__, "_files": OrderedDict()}

    def _image(self, column: int, index: int) -> np.ndarray | None:
        data = self._member(column, index)
        name = self._name(index)
        return None if data is None else decode_image(data, name=name, max_pixels=self._max_pixels)

    def _caption(self, index: int) -> str:
        text = self._member(_TEXT, index)
        if text is None:
            text = _json_caption(self._member(_JSON, index))
        return " ".join(text.decode("utf-8-sig", errors="replace").split())

    def _member(self, column: int, index: int) -> bytes | None:
        """The bytes of one member, None if the sample has none.

        Raises:
            BadImage: it is too long, or missing now.
        """
        offset, length = (int(number) for number in self._table[column, index])
        if offset < 0:
            return None
        if length > self._max_bytes:
            raise BadImage(f"{self._name(index)}: {length} bytes are more than max_bytes={self._max_bytes}")
        data = os.pread(self._file(int(self._shard[index])), length, offset)
        if len(data) < length:
            raise BadImage(f"{self._name(index)}: the tar ends inside it; copy the tar again")
        return data

    def _file(self, shard: int) -> int:
        """The file descriptor of a tar; the least recently used ones are closed.

        Raises:
            ValueError: the tar has changed since it was indexed.
        """
        if shard not in self._files:
            opened = os.open(self._tars[shard], os.O_RDONLY)
            if os.fstat(opened).st_size != self._sizes[shard]:
                raise ValueError(f"{self._tars[shard]}: changed while it was in use; start again")
            self._files[shard] = opened
            if len(self._files) > OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(shard)
        return self._files[shard]

    def _name(self, index: int) -> str:
        return f"{self._tars[self._shard[index]]}: {self._keys[index]}"


def list_tars(root: str | Path) -> list[Path]:
    """The tars in and below a folder, sorted by path, or a single tar.

    Raises:
        ValueError: there are none, or `root` is not a local path.
    """
    if "://" in str(root) or str(root).startswith("pipe:"):
        raise ValueError(f"root={root}: shards are read by offset from local files; copy them, or mount their store")
    place = Path(root).expanduser()
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise ValueError(f"{place}: no such folder of tars")
    tars = sorted(Path(name) for name in walk(place).files if name.endswith(".tar"))
    if not tars:
        raise ValueError(f"{place}: no .tar in or below it; restore-lab data pack output={place} writes some")
    return [place / tar for tar in tars]


class _Member(io.RawIOBase):
    """A member of a tar as an unbuffered file."""

    def __init__(self, descriptor: int, *, offset: int, length: int) -> None:
        super().__init__()
        self._descriptor, self._offset, self._length, self._place = descriptor, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._length}[whence]
        if start + offset < 0:
            raise OSError("before the start of the file")
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._length - self._place))
        data = os.pread(self._descriptor, count, self._offset + self._place)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


class _Strings:
    """Many strings in two arrays, which forked workers share; reference counts would cause copies of a list."""

    def __init__(self, strings: Sequence[str]) -> None:
        encoded = [text.encode("utf-8", "surrogatepass") for text in strings]
        self._ends = np.cumsum([len(text) for text in encoded])
        self._text = np.frombuffer(b"".join(encoded), np.uint8)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return self._text[start : self._ends[index]].tobytes().decode("utf-8", "surrogatepass")


def _keys(tars: Sequence[Path], indices: Sequence[TarIndex], whole: Sequence[np.ndarray]) -> list[str]:
    kept = [[key for key, good in zip(i.keys, w, strict=True) if good] for i, w in zip(indices, whole, strict=True)]
    keys = [key for some in kept for key in some]
    if len(set(keys)) == len(keys):
        return keys
    base = Path(os.path.commonpath([tar.parent for tar in tars]))
    names = [tar.relative_to(base).with_suffix("").as_posix() for tar in tars]
    return [f"{name}/{key}" for name, some in zip(names, kept, strict=True) for key in some]


def _table(tar: Path, index: TarIndex, *, role: Role, image: str | None) -> np.ndarray:
    """Offset and length (last axis) of each sample's HQ, LQ, text and JSON; -1 where there is none.

    Raises:
        ValueError: a sample has several images of one role.
    """
    table = np.full((4, len(index.keys), 2), -1, np.int64)
    columns: Mapping[str, int] = {"txt": _TEXT, "json": _JSON}
    images = {"hq": _HQ, "lq": _LQ, "": _HQ if role == "hq" else _LQ}
    for kind in sorted(index.offsets):
        part, _, suffix = kind.rpartition(".")
        is_image = f".{suffix}" in IMAGE_SUFFIXES and part in images and image in (None, suffix)
        column = images[part] if is_image else columns.get(kind)
        if column is None:
            continue
        there = index.offsets[kind] >= 0
        if np.any(twice := there & (table[column, :, 0] >= 0)):
            key = index.keys[int(np.argmax(twice))]
            raise ValueError(f"{tar}: {key} has several images, {kind} among them; say which with image={suffix}")
        table[column, there, 0], table[column, there, 1] = index.offsets[kind][there], index.lengths[kind][there]
    return table


def _json_caption(data: bytes | None) -> bytes:
    """The caption in a sample's JSON; empty for none."""
    try:
        record = parse_json(data or b"{}", name="sample")
    except ValueError:
        return b""
    caption = next((record[key] for key in CAPTION_KEYS if record.get(key)), "") if isinstance(record, dict) else ""
    return caption.encode("utf-8", "replace") if isinstance(caption, str) else b""
