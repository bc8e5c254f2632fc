"""Reads the file of an offline wandb run: protocol buffers in LevelDB's log format.

After 7 bytes of header come blocks of 32 KiB; each piece in a block has a checksum (4 bytes), a length (2) and a kind
(1: a whole record, 2 to 4: its first, middle and last piece).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEADER, BLOCK, PIECE = 7, 32768, 7
WHOLE, LAST = 1, 4


@dataclass(kw_only=True)
class Page:
    """One sitting of a run. `exit_code` is None where the process was killed."""

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None
    folder: Path


def pages(runs_dir: Path) -> list[Page]:
    """Every offline run below `runs_dir`, in the order in which they were begun."""
    files = sorted((runs_dir / "wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_ctime_ns)
    return [_page(file) for file in files]


def _page(file: Path) -> Page:
    page = Page(folder=file.parent / "files")
    for record in _records(file.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            page.run = record.run
            page.config |= _values(record.run.config.update)
        elif kind == "config":
            page.config |= _values(record.config.update)
        elif kind == "history":
            page.history.append(_values(record.history.item))
        elif kind == "exit":
            page.exit_code = record.exit.exit_code
    return page


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    at, read = HEADER, b""
    while at + PIECE <= len(data):
        left = BLOCK - at % BLOCK
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if left < PIECE or kind == 0:
            at += left
            continue
        read += data[at + PIECE : at + PIECE + length]
        at += PIECE + length
        if kind in (WHOLE, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(read)
            read = b""
            yield record
