"""The schema of a table file, key by key; file.py explains the keys.

Every key that `tiny` and `full` take for one scale may also be set next to them for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from restore_lab.config.kinds import Mismatch, Range, abbreviate, coerce

Direction = Literal["more", "less"]
Numbers = Sequence[float | None]


class Jobs(TypedDict):
    """Overrides of jobs: for every verb, and for one."""

    overrides: NotRequired[Sequence[str] | None]
    train: NotRequired[Sequence[str] | None]
    evaluate: NotRequired[Sequence[str] | None]
    describe: NotRequired[Sequence[str] | None]


class AtScale(Jobs):
    """The entries of one scale."""

    weights: NotRequired[str | None]
    mean: NotRequired[Sequence[str] | None]


class Scaled(Jobs):
    """Overrides for both scales, and for one."""

    tiny: NotRequired[AtScale | None]
    full: NotRequired[AtScale | None]


class StandIn(TypedDict):
    """A stand-in for a metric that is not measured at scale=tiny."""

    metric: str
    better: Direction


class ColumnEntry(TypedDict):
    """An entry of `columns`."""

    better: Direction
    metric: NotRequired[str | None]
    tiny: NotRequired[str | StandIn | None]
    digits: NotRequired[Annotated[int, Range(0, 12)]]
    describe: NotRequired[str | None]


class ConditionEntry(Scaled):
    """An entry of `conditions`."""

    title: NotRequired[str]
    columns: NotRequired[Sequence[str] | None]
    only: NotRequired[Literal["tiny", "full"] | None]
    mean: NotRequired[Sequence[str] | None]


class RowEntry(Scaled):
    """An entry of `rows`."""

    title: NotRequired[str]
    labels: NotRequired[Mapping[str, str] | None]
    weights: NotRequired[str | None]
    prompt_set: NotRequired[str | None]
    system: NotRequired[str | None]
    only: NotRequired[Literal["tiny", "full"] | None]
    published: NotRequired[Numbers | Mapping[str, Numbers] | None]
    note: NotRequired[str]


class ClaimEntry(TypedDict):
    """An entry of `claims`."""

    says: str
    row: str
    baseline: str
    column: str
    expect: Literal["better", "worse"]
    condition: NotRequired[str]


class TableEntry(Scaled):
    """The node `table`."""

    title: str
    columns: Mapping[str, ColumnEntry]
    rows: Mapping[str, RowEntry | None]
    source: NotRequired[Mapping[str, str] | None]
    conditions: NotRequired[Mapping[str, ConditionEntry | None] | None]
    claims: NotRequired[Sequence[ClaimEntry] | None]
    notes: NotRequired[Sequence[str] | None]
    figure: NotRequired[Mapping[str, Any] | None]


def validate(node: object, where: str) -> TableEntry:
    """The validated node `table` of a file.

    Raises:
        ValueError: with the first entry that does not fit the schema.
    """
    try:
        return coerce(node, TableEntry)
    except Mismatch as error:
        place = f"{error.place.lstrip('.')}={abbreviate(error.value)}: " if error.place else ""
        raise ValueError(f"{where}: {place}{error}") from error
