"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path, PurePath
from typing import Any

from restore_lab.system.faults import name_file


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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
