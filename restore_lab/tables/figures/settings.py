"""What a table's file says of its picture: the node `figure` of a table, read by spec.py.

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
from typing import Any


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
SETTINGS = {
    "frontier": ("fidelity", "quality", "knob", "value", "reference"),
    "surface": ("best", "columns", "instructed", "actual"),
}


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
    if entry.get("kind") not in SETTINGS:
        raise ValueError(f"{where}: kind={entry.get('kind')!r} is one of {', '.join(SETTINGS)}")
    wanted = SETTINGS[entry["kind"]]
    if set(entry) != {"kind", *wanted}:
        raise ValueError(f"{where}: kind={entry['kind']} has the settings {', '.join(wanted)}, each once")
    named = (entry["fidelity"], entry["quality"]) if entry["kind"] == "frontier" else (entry["best"], *entry["columns"])
    for column in named:
        if column not in columns:
            raise ValueError(f"{where}: no column {column!r}; there are {', '.join(columns)}")
    if entry["kind"] == "frontier":
        fidelity, quality = entry["reference"][scale]
        settings = {key: entry[key] for key in ("fidelity", "quality", "knob", "value")}
        return Frontier(**settings, reference=(float(fidelity), float(quality)))
    strengths = {"instructed": rows, "actual": conditions}
    for key, names in strengths.items():
        if set(entry[key]) != set(names):
            raise ValueError(f"{where}: {key} has a number for each of {', '.join(names)}")
    instructed, actual = (dict(sorted(entry[key].items(), key=lambda pair: float(pair[1]))) for key in strengths)
    return Surface(best=entry["best"], columns=tuple(entry["columns"]), instructed=instructed, actual=actual)
