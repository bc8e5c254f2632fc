"""Tables in parquet, read without threads.

pyarrow's own reader leaves work to a pool of threads that may still hold Python's objects when the interpreter ends,
which then aborts (exit status 134) although all was done; small tables gain nothing by threads.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any


def rows(source: Path | bytes, *, columns: Collection[str] | None = None) -> list[dict[str, Any]]:
    """The lines of a table, from a file or from its content.

    Args:
        columns: which to read; those that it lacks are left out. None reads all.

    Raises:
        ValueError: if it is no parquet.
        OSError: if it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = pa.BufferReader(source) if isinstance(source, bytes) else source
    with pq.ParquetFile(place, pre_buffer=False) as file:
        wanted = None if columns is None else [name for name in file.schema_arrow.names if name in columns]
        return file.read(columns=wanted, use_threads=False).to_pylist()
