"""Parquet tables, read in a single thread.

The threads of pyarrow's reader may still hold Python objects when the interpreter exits, which then aborts (exit status
134); small tables gain nothing from threads.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

MAX_UNPACKED_BYTES = 4 * 2**30  # of all rows: a small file may repeat one value a billion times
BATCH_ROWS = 1024
ROW_BYTES = 200  # minimum size of a row as Python objects


def rows(
    source: Path | bytes, *, columns: Collection[str] | None = None, name: Path | None = None
) -> list[dict[str, Any]]:
    """The rows of a table.

    Args:
        source: the file, or its bytes.
        columns: which to read, if the table has them; None for all.
        name: the file's name in errors, if `source` is its bytes.

    Raises:
        ValueError: if it is not parquet, or decompresses to more than 4 GiB.
        OSError: if it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = pa.BufferReader(source) if isinstance(source, bytes) else source
    found: list[dict[str, Any]] = []
    room = MAX_UNPACKED_BYTES
    try:
        with pq.ParquetFile(place, pre_buffer=False) as file:
            wanted = None if columns is None else [name for name in file.schema_arrow.names if name in columns]
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=wanted, use_threads=False):
                room -= batch.nbytes + batch.num_rows * ROW_BYTES
                if room < 0:
                    raise ValueError(f"unpacks to more than {MAX_UNPACKED_BYTES >> 30} GiB")
                found += batch.to_pylist()
    except (pa.ArrowException, ValueError, UnicodeDecodeError, OverflowError) as error:
        what = name or (source if isinstance(source, Path) else "table")
        raise ValueError(f"{what}: no parquet that can be read ({' '.join(str(error).split())[:200]})") from error
    return found
