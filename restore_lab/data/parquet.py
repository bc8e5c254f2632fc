"""Tables in parquet, read without threads.

pyarrow's own reader leaves work to a pool of threads that may still hold Python's objects when the interpreter ends,
which then aborts (exit status 134) although all was done; small tables gain nothing by threads.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

MAX_BYTES = 4 * 2**30  # of all lines: a small file may say one word a billion times
LINES = 1024  # at once
EACH = 200  # bytes of a line as Python keeps it, at least


def rows(
    source: Path | bytes, *, columns: Collection[str] | None = None, name: Path | None = None
) -> list[dict[str, Any]]:
    """The lines of a table, from a file or from its content.

    Args:
        columns: which to read; those that it lacks are left out. None reads all.
        name: what a content is called where it is refused.

    Raises:
        ValueError: if it is no parquet, or unpacks to more than 4 GiB.
        OSError: if it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = pa.BufferReader(source) if isinstance(source, bytes) else source
    found: list[dict[str, Any]] = []
    room = MAX_BYTES
    try:
        with pq.ParquetFile(place, pre_buffer=False) as file:
            wanted = None if columns is None else [name for name in file.schema_arrow.names if name in columns]
            for batch in file.iter_batches(batch_size=LINES, columns=wanted, use_threads=False):
                room -= batch.nbytes + batch.num_rows * EACH
                if room < 0:
                    raise ValueError(f"unpacks to more than {MAX_BYTES >> 30} GiB")
                found += batch.to_pylist()
    except (pa.ArrowException, ValueError, UnicodeDecodeError, OverflowError) as error:
        what = name or (source if isinstance(source, Path) else "table")
        raise ValueError(f"{what}: no parquet that can be read ({' '.join(str(error).split())[:200]})") from error
    return found
