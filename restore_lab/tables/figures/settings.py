"""What a table's file says of its picture: the node `figure` of a table, read by file.py.

    {kind: frontier, fidelity: COLUMN, quality: COLUMN, knob: LABEL, value: LABEL, reference: {tiny: [f, q], full: ...}}
    {kind: surface, best: COLUMN, columns: [COLUMN, ...], instructed: {ROW: number, ...},
     actual: {CONDITION: number, ...}}

A frontier's points are the rows, a method's all under one title; each condition is a panel. `reference` is the point
from which the hypervolume is counted, in the metrics of that scale. A surface's rows are instructed with a
strength, its conditions have one; `best` is the column that decides which instruction is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from restore_lab.config.kinds import Unfit, fit, short


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Quality against fidelity.

    Attributes:
        fidelity, quality: the columns.
        knob, value: the labels that say what a row turned, and how far; a row without a value is its method's default.
        reference: fidelity and quality from which the hypervolume is counted, as the metrics have them.
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
        best: the column that says which instructed strength is best.
        columns: those that are drawn, a heat map each.
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


KINDS = {"frontier": FrontierEntry, "surface": SurfaceEntry}


def read(
    entry: Mapping[str, Any] | None,
    where: str,
    scale: str,
    *,
    columns: Sequence[str],
    conditions: Sequence[str],
    rows: Sequence[str],
) -> Figure | None:
    """The picture of a table, None if its file names none.

    Args:
        entry: the node.
        where: the table, for messages.
        scale: whose reference counts.
        columns, conditions, rows: those of the table, by name.

    Raises:
        ValueError: for an unknown kind, a setting that it does not have or lacks, or a column that the table lacks.
    """
    if entry is None:
        return None
    where = f"{where}, figure"
    if entry.get("kind") not in KINDS:
        raise ValueError(f"{where}: kind={entry.get('kind')!r} is one of {', '.join(KINDS)}")
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
    """The settings of a kind, their values as they are asked for."""
    try:
        return fit(entry, KINDS[kind])
    except Unfit as error:
        place = f"{error.place.lstrip('.')}={short(error.value)}: " if error.place else ""
        raise ValueError(f"{where}: {place}{error}") from error
