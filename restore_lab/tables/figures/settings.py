"""The settings of a table's figure: the node `figure` of a table file, read by file.py.

    {kind: frontier, fidelity: COLUMN, quality: COLUMN, knob: LABEL, value: LABEL, reference: {tiny: [f, q], full: ...}}
    {kind: surface, best: COLUMN, columns: [COLUMN, ...], instructed: {ROW: number, ...},
     actual: {CONDITION: number, ...}}

A frontier's points are the rows, with one title per method; each condition is a panel. `reference` is the reference
point of the hypervolume, in the metrics of that scale. In a surface each row has an instructed strength and each
condition a true one; `best` is the column that ranks the instructions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from restore_lab.config.kinds import Mismatch, abbreviate, fit


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Quality against fidelity.

    Attributes:
        fidelity, quality: the columns.
        knob, value: the labels with a row's varied parameter and its value; without a value it is the method's default.
        reference: reference point of the hypervolume (fidelity, quality), in the metrics' own units.
    """

    fidelity: str
    quality: str
    knob: str
    value: str
    reference: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A column over instructed and true strength.

    Attributes:
        best: the column that ranks the instructed strengths.
        columns: the columns to draw, one heat map each.
        instructed, actual: the strength of each row and of each condition, weakest first.
    """

    best: str
    columns: tuple[str, ...]
    instructed: Mapping[str, float]
    actual: Mapping[str, float]


Figure = Frontier | Surface


class FrontierEntry(TypedDict):
    """The node of a frontier, without its kind."""

    fidelity: str
    quality: str
    knob: str
    value: str
    reference: Mapping[str, tuple[float, float]]  # by scale


class SurfaceEntry(TypedDict):
    """The node of a surface, without its kind."""

    best: str
    columns: Sequence[str]
    instructed: Mapping[str, float]
    actual: Mapping[str, float]


SCHEMAS = {"frontier": FrontierEntry, "surface": SurfaceEntry}


def read_figure(
    entry: Mapping[str, Any] | None,
    where: str,
    scale: str,
    *,
    columns: Sequence[str],
    conditions: Sequence[str],
    rows: Sequence[str],
) -> Figure | None:
    """The settings of a table's figure; None if its file has none.

    Args:
        entry: the node.
        where: the table's name, for messages.
        scale: selects the reference point.
        columns, conditions, rows: names in the table.

    Raises:
        ValueError: for an unknown kind, an unknown or missing setting, or a column that the table lacks.
    """
    if entry is None:
        return None
    where = f"{where}, figure"
    if entry.get("kind") not in SCHEMAS:
        raise ValueError(f"{where}: kind={entry.get('kind')!r} is one of {', '.join(SCHEMAS)}")
    entry = {"kind": entry["kind"], **_fitting({k: v for k, v in entry.items() if k != "kind"}, entry["kind"], where)}
    named = (entry["fidelity"], entry["quality"]) if entry["kind"] == "frontier" else (entry["best"], *entry["columns"])
    for column in named:
        if column not in columns:
            raise ValueError(f"{where}: no column {column!r}; there are {', '.join(columns)}")
    if entry["kind"] == "frontier":
        if scale not in entry["reference"]:
            raise ValueError(
                f"{where}: reference has no {scale}; give fidelity and quality, reference: {{{scale}: [0, 0]}}"
            )
        fidelity, quality = entry["reference"][scale]
        settings = {key: entry[key] for key in ("fidelity", "quality", "knob", "value")}
        return Frontier(**settings, reference=(float(fidelity), float(quality)))
    strengths = {"instructed": rows, "actual": conditions}
    for key, names in strengths.items():
        if set(entry[key]) != set(names):
            raise ValueError(f"{where}: {key} has a number for each of {', '.join(names)}")
    instructed, actual = (dict(sorted(entry[key].items(), key=lambda pair: float(pair[1]))) for key in strengths)
    return Surface(best=entry["best"], columns=tuple(entry["columns"]), instructed=instructed, actual=actual)


def _fitting(entry: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """The validated settings of a kind of figure."""
    try:
        return fit(entry, SCHEMAS[kind])
    except Mismatch as error:
        place = f"{error.place.lstrip('.')}={abbreviate(error.value)}: " if error.place else ""
        raise ValueError(f"{where}: {place}{error}") from error
