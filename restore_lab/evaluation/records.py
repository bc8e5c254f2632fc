"""Records: the results of an evaluation as files, and the only source of tables.

A record is a folder of two files: `per_image.parquet` (one line per row, image and metric: row, key, metric, value,
caption, instruction, recipe as JSON) and `record.json` (mean, std, n and the full column label of each row and metric,
with settings, identity, code version and notes). Both are written atomically, `record.json` last and with the hash of
the other, so that a record is complete or absent. Rows have free names; LQ, D(E(LQ)) and D(E(HQ)) come first. Images
may be saved for inspection as `images/<row>/<key>.webp`: LQ, the method's rows and original. Records are untrusted:
fields of a wrong type and links out of the folder are errors.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from restore_lab.data import parquet
from restore_lab.evaluation.protocol import ColumnLabel
from restore_lab.storage.artefact import IDENTIFIER
from restore_lab.storage.atomic import write_bytes_atomic, write_json_atomic
from restore_lab.storage.foreign import LARGEST, bytes_of, json_of, parse_dataclass
from restore_lab.storage.safe_names import shorten

LQ, DECODED_LQ, DECODED_HQ = "LQ", "D(E(LQ))", "D(E(HQ))"
ROBUST_LQ = "D(E_dr(LQ))"  # with a robust LQ encoder
ORIGINAL = "original"
RECORD, PER_IMAGE, IMAGES_FOLDER, PICTURE = "record.json", "per_image.parquet", "images", "pictures.png"
RECORD_FORMAT = 1
TEXT_COLUMNS = ("row", "key", "metric", "caption", "instruction", "recipe")
PER_IMAGE_COLUMNS = [*TEXT_COLUMNS, "value"]


@dataclass(frozen=True, kw_only=True)
class ImageValue:
    """One metric value of one image; None if it has none."""

    row: str
    key: str
    metric: str
    value: float | None
    caption: str = ""
    instruction: str = ""
    recipe: str = ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a table. `std` is the sample deviation over images (n - 1), None for set metrics and single images;
    `interval` the 95 percent bootstrap interval of a set metric, if it has one."""

    row: str
    metric: str
    mean: float
    std: float | None
    n: int
    higher_is_better: bool
    column: ColumnLabel
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of a suite: cells, values per image, and one line for every metric or value that is missing."""

    cells: tuple[Cell, ...]
    images: tuple[ImageValue, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Head:
    """The content of `record.json`."""

    format: int
    identity: str
    code: str
    settings: Mapping[str, Any]
    parents: tuple[str, ...]
    cells: tuple[Any, ...]
    notes: tuple[str, ...]
    per_image_sha256: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """Results with their settings and provenance."""

    results: Results
    identity: str
    code: str
    settings: Mapping[str, Any]
    parents: tuple[str, ...] = ()


def write_record(
    folder: str | Path,
    *,
    results: Results,
    settings: Mapping[str, object],
    identity: str,
    code: str,
    parents: Sequence[str] = (),
) -> Path:
    """Write both files and return the path of `record.json`.

    Args:
        folder: created if it does not exist.
        results: of the evaluation.
        settings: of the evaluation, plain values.
        identity: hash of settings and parents.
        code: version of the code.
        parents: identities of the artefacts measured, such as weights.
    """
    place = Path(folder)
    table = _parquet(results.images)
    write_bytes_atomic(place / PER_IMAGE, table)
    write_json_atomic(
        place / RECORD,
        {
            "format": RECORD_FORMAT,
            "identity": identity,
            "code": code,
            "settings": settings,
            "parents": list(parents),
            "cells": [
                {**asdict(cell), "column": cell.column.fields(), "column_id": cell.column.id} for cell in results.cells
            ],
            "notes": list(results.notes),
            "per_image_sha256": hashlib.sha256(table).hexdigest(),
        },
    )
    return place / RECORD


def read_record(folder: str | Path) -> Record:
    """Read a record.

    Raises:
        FileNotFoundError: if there is no record.
        ValueError: if it is malformed or of another format, or its two files do not match.
    """
    place = Path(folder) / RECORD
    if not os.path.lexists(place):
        raise FileNotFoundError(2, "no record here; run restore-lab evaluate first", str(place))
    try:
        raw = json_of(place, within=place.parent, require_finite=True)
        if isinstance(raw, Mapping) and isinstance(raw.get("format"), int) and raw["format"] != RECORD_FORMAT:
            raise ValueError(
                f"{place}: record format {raw['format']}, this version reads {RECORD_FORMAT}; evaluate again"
            )
        known = {"parents": [], **raw} if isinstance(raw, Mapping) else raw
        head = parse_dataclass(_Head, known, name=place)
        cells = tuple(_cell(entry, place) for entry in head.cells)
    except ValueError as error:
        if str(error).endswith("evaluate again"):
            raise
        why = str(error).removeprefix(f"{place}: ")
        raise ValueError(f"{place} is not a record ({why}); evaluate again") from error
    if not all(IDENTIFIER.fullmatch(name) for name in (head.identity, *head.parents)):
        raise ValueError(f"{place} is not a record (identities are names); evaluate again")
    images = _images(place.with_name(PER_IMAGE), head.per_image_sha256)
    results = Results(cells=cells, images=images, notes=head.notes)
    return Record(results=results, identity=head.identity, code=head.code, settings=head.settings, parents=head.parents)


def has_record(folder: str | Path, *, identity: str) -> bool:
    """Whether the folder has a complete record of this identity."""
    try:
        return read_record(folder).identity == identity
    except (OSError, ValueError):
        return False


def image_file(folder: str | Path, row: str, key: str) -> Path:
    """The path of a record's saved image; invalid file names are replaced by valid, distinct ones."""
    return Path(folder) / IMAGES_FOLDER / _safe(row) / f"{_safe(key)}.webp"


def _safe(name: str) -> str:
    """A name as a valid path component; a changed name gets its hash appended, to stay distinct."""
    plain = shorten(re.sub(r"[^\w.-]+", "_", name).strip("."))
    if plain == name:
        return plain
    return f"{plain}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def render_results(results: Results) -> str:
    """A Markdown table, rows by columns, with the protocol of every column at its foot.

    "+" marks a metric where higher is better, "-" one where lower is; a cell is mean and (std). Numbers of one metric
    with different labels (size, count) have numbered columns of their own.
    """
    columns = {cell.column.id: cell for cell in results.cells}
    titles = _titles(list(columns.values()))
    rows = sort_rows([cell.row for cell in results.cells])
    cells = {(cell.row, cell.column.id): cell for cell in results.cells}
    means = {key: [abs(cell.mean) for cell in results.cells if cell.column.id == key] for key in titles}
    digits = {key: 2 if max(values) >= 10 else 4 for key, values in means.items()}
    lines = [["", *titles.values()]]
    for row in rows:
        lines.append([row, *(_number(cells.get((row, key)), digits[key]) for key in titles)])
    labels = [f"{titles[key]}  {cell.column.text()}" for key, cell in columns.items()]
    return "\n".join([*_markdown(lines), "", *labels, *(f"note: {note}" for note in results.notes)])


def sort_rows(rows: Sequence[str]) -> list[str]:
    """Distinct rows: LQ and codec rows first, the others in their order."""
    fixed = [row for row in (LQ, DECODED_LQ, ROBUST_LQ, DECODED_HQ) if row in rows]
    return fixed + [row for row in dict.fromkeys(rows) if row not in fixed]


def method_rows(results: Results) -> list[str]:
    """The rows other than LQ and codec rows, in their order."""
    fixed = (LQ, DECODED_LQ, ROBUST_LQ, DECODED_HQ)
    return [row for row in dict.fromkeys(cell.row for cell in results.cells) if row not in fixed]


def _titles(cells: Sequence[Cell]) -> dict[str, str]:
    """Headings by column id; numbered for metrics with several columns."""
    together: dict[str, list[Cell]] = {}
    for cell in cells:
        together.setdefault(cell.metric, []).append(cell)
    titles: dict[str, str] = {}
    for metric, group in together.items():
        for number, cell in enumerate(group):
            letter = f"[{number + 1}]" if len(group) > 1 else ""
            titles[cell.column.id] = f"{metric}{letter} {'+' if cell.higher_is_better else '-'}"
    return titles


def _markdown(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(lines[0]))]
    head, *body = ("| " + " | ".join(_padded(line, widths)) + " |" for line in lines)
    rule = "|" + "|".join("-" * (width + 1) + ("-" if i == 0 else ":") for i, width in enumerate(widths)) + "|"
    return [head, rule, *body]


def _padded(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        text.ljust(width) if i == 0 else text.rjust(width)
        for i, (text, width) in enumerate(zip(line, widths, strict=True))
    ]


def _number(cell: Cell | None, digits: int) -> str:
    if cell is None:
        return ""
    spread = "" if cell.std is None else f" ({cell.std:.{digits}f})"
    if cell.interval is not None:
        spread = f" [{cell.interval[0]:.{digits}f}, {cell.interval[1]:.{digits}f}]"
    return f"{cell.mean:.{digits}f}{spread}"


def _cell(entry: object, place: Path) -> Cell:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{place}: a cell is {type(entry).__name__}")
    column = parse_dataclass(ColumnLabel, entry.get("column"), name="a cell's column")
    fields = {key: value for key, value in entry.items() if key not in ("column", "column_id")}
    cell = parse_dataclass(Cell, {**fields, "column": column}, name="a cell")
    if cell.column.id != entry.get("column_id"):
        raise ValueError(f"record cell {cell.row}/{cell.metric}: its column was edited; evaluate again")
    return cell


def _parquet(images: Sequence[ImageValue]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([*((name, pa.string()) for name in TEXT_COLUMNS), ("value", pa.float64())])
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(image) for image in images], schema=schema), sink)
    return sink.getvalue()


def _images(path: Path, expected: str) -> tuple[ImageValue, ...]:
    if not os.path.lexists(path):
        raise ValueError(f"{path} is missing beside its {RECORD}; evaluate again")
    data = bytes_of(path, within=path.parent)
    if hashlib.sha256(data).hexdigest() != expected:
        raise ValueError(f"{path} is not the one that its {RECORD} was written with; evaluate again")
    lines = parquet.rows(data, name=path)
    if lines and (list(lines[0]) != PER_IMAGE_COLUMNS or not all(_is_image(line) for line in lines)):
        raise ValueError(f"{path} holds other columns than {', '.join(PER_IMAGE_COLUMNS)}; evaluate again")
    return tuple(ImageValue(**line) for line in lines)


def _is_image(line: Mapping[str, object]) -> bool:
    value = line["value"]
    sound = value is None or (isinstance(value, float) and not LARGEST < abs(value) < math.inf)
    return sound and all(type(line[name]) is str for name in TEXT_COLUMNS)
