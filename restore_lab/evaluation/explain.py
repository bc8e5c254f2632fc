"""Why two records differ: protocol, weights, images, seed, settings or code. `restore-lab evaluate --explain A B`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from restore_lab.evaluation.records import RECORD, Record, read_record

MAX_KEYS = 5  # per line


def explain_records(a: str | Path, b: str | Path) -> list[str]:
    """One line per kind of difference between two records, the likeliest causes of different numbers first.

    Args:
        a, b: folders of records, or their record.json.

    Raises:
        FileNotFoundError: if one does not exist.
    """
    first, second = (read_record(_folder(place)) for place in (a, b))
    found = [
        *_protocols(first, second),
        *_weights(first, second),
        *_images(first, second),
        *_settings(first, second),
        *_code(first, second),
    ]
    return found or ["nothing differs: same protocol, weights, images, seed, settings and code"]


def _folder(place: str | Path) -> Path:
    path = Path(place).expanduser()
    return path.parent if path.name == RECORD else path


def _protocols(a: Record, b: Record) -> Iterator[str]:
    """Differing columns of a metric, field by field, and metrics of only one record."""
    columns = [{cell.metric: cell.column for cell in record.results.cells} for record in (a, b)]
    for metric in columns[0]:
        if metric not in columns[1] or columns[0][metric].id == columns[1][metric].id:
            continue
        fields = [asdict(column[metric]) for column in columns]
        odd = [key for key in fields[0] if fields[0][key] != fields[1][key]]
        parts = [f"{key} {fields[0][key]!r} against {fields[1][key]!r}" for key in odd]
        yield f"protocol of {metric}: {', '.join(parts)}"
    for here, there, which in ((columns[0], columns[1], "first"), (columns[1], columns[0], "second")):
        if only := [metric for metric in here if metric not in there]:
            yield f"metrics in the {which} alone: {', '.join(only)}"


def _weights(a: Record, b: Record) -> Iterator[str]:
    sources = [record.parents or (record.settings.get("weights"),) for record in (a, b)]
    if sources[0] != sources[1]:
        shown = ["none" if not any(entry) else ", ".join(str(e) for e in entry if e) for entry in sources]
        yield f"weights: {shown[0]} against {shown[1]}"


def _images(a: Record, b: Record) -> Iterator[str]:
    keys = [{image.key for image in record.results.images} for record in (a, b)]
    for here, there, which in ((keys[0], keys[1], "first"), (keys[1], keys[0], "second")):
        if only := sorted(here - there):
            more = f", ... ({len(only)} in all)" if len(only) > MAX_KEYS else ""
            yield f"images in the {which} alone: {', '.join(only[:MAX_KEYS])}{more}"


def _settings(a: Record, b: Record) -> Iterator[str]:
    flat = [dict(_flat(record.settings, "")) for record in (a, b)]
    for key in sorted(flat[0].keys() | flat[1].keys()):
        values = [entries.get(key, "(not set)") for entries in flat]
        if values[0] != values[1] and key != "weights":
            yield f"{'seed' if key == 'seed' else f'setting {key}'}: {values[0]} against {values[1]}"


def _flat(node: object, place: str) -> Iterator[tuple[str, object]]:
    """Leaves of nested plain values by dotted name."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _flat(value, f"{place}.{key}" if place else str(key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _flat(value, f"{place}[{number}]")
    else:
        yield place, node


def _code(a: Record, b: Record) -> Iterator[str]:
    if a.code != b.code:
        yield f"code: {a.code} against {b.code}"
