"""The numbers of a table's cells, read from records: means over images and seeds.

Rows are compared image by image with the same noise, seed by seed (`number.compare_numbers`). Numbers with different
labels (another protocol, other images) are never compared.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from restore_lab.evaluation.metrics.kernel_distance import KERNEL_ID
from restore_lab.evaluation.records import DECODED_HQ, DECODED_LQ, LQ, Record, method_rows, read_record
from restore_lab.evaluation.statistics import photograph
from restore_lab.tables.described import description_column
from restore_lab.tables.jobs import Plan, ScoresKey
from restore_lab.tables.means import average_conditions
from restore_lab.tables.number import CellKey, Number
from restore_lab.tables.spec import Spec

REFERENCE_ROWS = (LQ, DECODED_LQ, DECODED_HQ)


@dataclass(frozen=True, kw_only=True)
class TableNumbers:
    """The numbers of one table by row, condition and column; `references` names the LQ and the codec's rows."""

    spec: Spec
    numbers: Mapping[CellKey, Number]
    problems: Sequence[str]
    references: Sequence[str] = REFERENCE_ROWS


def read_numbers(plan: Plan, spec: Spec) -> TableNumbers:
    """The numbers of a table's existing records; missing records are left out.

    A number whose label differs from its column's first label is left out, and `problems` gives the difference.
    """
    numbers: dict[CellKey, Number] = {}
    problems: list[str] = []
    found = {
        condition: {row.name: records_of(plan, spec.name, row.name, condition) for row in spec.rows.values()}
        for condition in spec.conditions
    }
    names: list[str] = []
    for condition in spec.conditions.values():
        own = found[condition.name]
        extra = references(own.values())
        names += [name for name, _, _ in extra]
        rows = [*((name, records, spec.rows[name].prompt_set) for name, records in own.items()), *extra]
        for title in condition.columns:
            values, problem = column(rows, spec.columns[title].metric, title)
            numbers |= {(name, condition.name, title): number for name, number in values.items()}
            problems += problem
    numbers |= average_conditions(spec, numbers)
    numbers |= {
        (row, condition.name, title): Number(mean=value, spread=None, n=0, seeds=1, label=None, code=(), images={})
        for condition in spec.conditions.values()
        for title in condition.columns
        for row, value in description_column(plan, spec, spec.columns[title].describe).items()
    }
    return TableNumbers(spec=spec, numbers=numbers, problems=problems, references=sort_references(names))


CodecMeans = Mapping[tuple[int, str, str], float]  # by seed, row and metric
# A row's name, its records by seed, and its name inside them (None: the method's own row).
RowRecords = tuple[str, Mapping[int, Record], str | None]


def references(candidates: Iterable[Mapping[int, Record]]) -> list[RowRecords]:
    """The LQ once and the codec's rows once per codec, from the first records that have them.

    Two codecs are the same if their rows measure the same, since priors may share one; records of an external system
    have no codec rows.
    """
    every = [records for records in candidates if records]
    codecs: list[Mapping[int, Record]] = []
    for records in every:
        if _codec(records) and not any(_alike(_codec(records), _codec(other)) for other in codecs):
            codecs.append(records)
    rows: dict[str, RowRecords] = {LQ: (LQ, every[0], LQ)} if every else {}
    for records in codecs:
        for own in (DECODED_LQ, DECODED_HQ):
            name = own if len(codecs) == 1 else f"{own}, {_backbone(records)}"
            rows.setdefault(name, (name, records, own))
    return list(rows.values())


def _codec(records: Mapping[int, Record]) -> CodecMeans:
    """The means of the codec's rows."""
    cells = [(seed, cell) for seed, record in records.items() for cell in record.results.cells]
    return {(seed, c.row, c.metric): c.mean for seed, c in cells if c.row in (DECODED_LQ, DECODED_HQ)}


def _alike(a: CodecMeans, b: CodecMeans) -> bool:
    """Whether the shared entries are equal up to rounding; threads and versions sum in different orders."""
    return all(math.isclose(a[key], b[key], rel_tol=1e-3) for key in a.keys() & b.keys())


def sort_references(names: Iterable[str]) -> list[str]:
    """Unique names of references, in the order of `REFERENCE_ROWS`."""
    return sorted(dict.fromkeys(names), key=lambda name: REFERENCE_ROWS.index(name.partition(",")[0]))


def _backbone(records: Mapping[int, Record]) -> str:
    """The prior of a row's records, by the last part of its path: "tiny_sdxl"."""
    settings = next(iter(records.values())).settings
    place = settings.get("module", {}).get("backbone", {}).get("path", "")
    return str(place).rpartition("/")[2].rpartition(":")[2]


def column(rows: Sequence[RowRecords], metric: str | None, title: str) -> tuple[dict[str, Number], list[str]]:
    """A metric's numbers by row, and a problem for each number whose label differs from the first."""
    numbers: dict[str, Number] = {}
    problems: list[str] = []
    first = None
    for name, records, own in rows:
        number = _number(records, own, metric) if metric else None
        if number is None:
            continue
        assert number.label is not None
        first = first or number.label
        if number.label.id == first.id:
            numbers[name] = number
        else:
            problems.append(f"{name}, {title}: measured as {number.label.text()}, the others as {first.text()}")
    return numbers, problems


def records_of(plan: Plan, table: str, row: str, condition: str) -> dict[int, Record]:
    """The existing records of a row under a condition, by seed."""
    found: dict[int, Record] = {}
    for seed in range(plan.seeds):
        identity = plan.scores.get(ScoresKey(table=table, row=row, condition=condition, seed=seed))
        if identity is not None and plan.jobs[identity].artefact.is_complete():
            found[seed] = read_record(plan.jobs[identity].artefact.folder)
    return found


def _number(records: Mapping[int, Record], row: str | None, metric: str) -> Number | None:
    """The number of one row of the records (None: the method's own) over their seeds."""
    means, kernels, images, photographs, label, n = [], [], {}, {}, None, 0
    for seed, record in records.items():
        name = method_rows(record.results)[0] if row is None else row
        cell = next((c for c in record.results.cells if c.row == name and c.metric == metric), None)
        if cell is None:
            return None
        means.append(cell.mean)
        beside = next((c for c in record.results.cells if c.row == name and c.metric == KERNEL_ID.get(metric)), None)
        kernels += [beside] if beside is not None else []
        label, n = cell.column, cell.n
        images |= {
            (seed, i.key): i.value
            for i in record.results.images
            if i.row == name and i.metric == metric and i.value is not None
        }
        photographs |= {key: photograph(key, record.settings) for s, key in images if s == seed}
    if label is None:
        return None
    return Number(
        mean=statistics.fmean(means),
        spread=statistics.stdev(means) if len(means) > 1 else None,
        n=n,
        seeds=len(means),
        label=label,
        code=tuple(dict.fromkeys(record.code for record in records.values())),
        images=images,
        photographs=photographs,
        kernels=tuple(kernel.mean for kernel in kernels),
        interval=kernels[0].interval if len(kernels) == 1 else None,
    )
