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
from typing import TypedDict, TypeVar

from restore_lab.config.kinds import Mismatch, abbreviate, coerce


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


E = TypeVar("E")


def read_figure(
    entry: Mapping[str, object] | None,
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
    settings = {key: value for key, value in entry.items() if key != "kind"}
    match entry.get("kind"):
        case "frontier":
            return _frontier(_fitting(settings, FrontierEntry, where), where, scale, columns)
        case "surface":
            return _surface(_fitting(settings, SurfaceEntry, where), where, columns, conditions, rows)
        case kind:
            raise ValueError(f"{where}: kind={kind!r} is one of frontier, surface")


def _frontier(entry: FrontierEntry, where: str, scale: str, columns: Sequence[str]) -> Frontier:
    _check_columns((entry["fidelity"], entry["quality"]), where, columns)
    if scale not in entry["reference"]:
        raise ValueError(
            f"{where}: reference has no {scale}; give fidelity and quality, reference: {{{scale}: [0, 0]}}"
        )
    fidelity, quality = entry["reference"][scale]
    return Frontier(
        fidelity=entry["fidelity"],
        quality=entry["quality"],
        knob=entry["knob"],
        value=entry["value"],
        reference=(float(fidelity), float(quality)),
    )


def _surface(
    entry: SurfaceEntry, where: str, columns: Sequence[str], conditions: Sequence[str], rows: Sequence[str]
) -> Surface:
    _check_columns((entry["best"], *entry["columns"]), where, columns)
    for key, strengths, names in (("instructed", entry["instructed"], rows), ("actual", entry["actual"], conditions)):
        if set(strengths) != set(names):
            raise ValueError(f"{where}: {key} has a number for each of {', '.join(names)}")
    instructed, actual = (
        dict(sorted(strengths.items(), key=lambda pair: float(pair[1])))
        for strengths in (entry["instructed"], entry["actual"])
    )
    return Surface(best=entry["best"], columns=tuple(entry["columns"]), instructed=instructed, actual=actual)


def _check_columns(named: Sequence[str], where: str, columns: Sequence[str]) -> None:
    for column in named:
        if column not in columns:
            raise ValueError(f"{where}: no column {column!r}; there are {', '.join(columns)}")


def _fitting(entry: Mapping[str, object], schema: type[E], where: str) -> E:
    """The validated settings of a kind of figure."""
    try:
        return coerce(entry, schema)
    except Mismatch as error:
        place = f"{error.place.lstrip('.')}={abbreviate(error.value)}: " if error.place else ""
        raise ValueError(f"{where}: {place}{error}") from error
