"""What records say for the cells of a table: means over images and seeds.

Rows are compared image by image under common noise, seed by seed (number.compare). Numbers of different columns
(another protocol, other images) are never compared.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from restore_lab.evaluation.metrics.kernel_distance import KERNEL_ID
from restore_lab.evaluation.records import DECODED_HQ, DECODED_LQ, LQ, Record, method_rows, read_record
from restore_lab.evaluation.statistics import photograph
from restore_lab.tables.described import described
from restore_lab.tables.jobs import Place, Plan
from restore_lab.tables.means import means
from restore_lab.tables.number import At, Number
from restore_lab.tables.spec import Spec

REFERENCES = (LQ, DECODED_LQ, DECODED_HQ)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The numbers of one table, by row, condition and column; LQ and the codec's rows under names of their own."""

    spec: Spec
    numbers: Mapping[At, Number]
    problems: Sequence[str]
    references: Sequence[str] = REFERENCES


def measured(plan: Plan, spec: Spec) -> Measured:
    """Read the records behind a table; what was not run is not there.

    A number whose label is another than its column's first is left out, and a problem says how they differ.
    """
    numbers: dict[At, Number] = {}
    problems: list[str] = []
    found = {
        condition: {row.name: records_of(plan, spec.name, row.name, condition) for row in spec.rows.values()}
        for condition in spec.conditions
    }
    names: list[str] = []
    for condition in spec.conditions.values():
        own = found[condition.name]
        beside = references(own.values())
        names += [name for name, _, _ in beside]
        rows = [*((name, records, spec.rows[name].variant) for name, records in own.items()), *beside]
        for title in condition.columns:
            values, problem = column(rows, spec.columns[title].metric, title)
            numbers |= {(name, condition.name, title): number for name, number in values.items()}
            problems += problem
    numbers |= means(spec, numbers)
    numbers |= {
        (row, condition.name, title): Number(mean=value, spread=None, n=0, seeds=1, label=None, code=(), images={})
        for condition in spec.conditions.values()
        for title in condition.columns
        for row, value in described(plan, spec, spec.columns[title].describe).items()
    }
    return Measured(spec=spec, numbers=numbers, problems=problems, references=ordered(names))


# A row's name, its records by seed, and what it is called in them (None: the method's own row).
Read = tuple[str, Mapping[int, Record], str | None]


def references(found: Iterable[Mapping[int, Record]]) -> list[Read]:
    """The LQ once and the codec's rows once for each codec, of the first records that have them.

    Codecs are told apart by what they make of the images, since priors may share one; records of other people's images
    have none.
    """
    every = [records for records in found if records]
    codecs: list[Mapping[int, Record]] = []
    for records in every:
        if _codec(records) and not any(_alike(_codec(records), _codec(other)) for other in codecs):
            codecs.append(records)
    rows: dict[str, Read] = {LQ: (LQ, every[0], LQ)} if every else {}
    for records in codecs:
        for own in (DECODED_LQ, DECODED_HQ):
            name = own if len(codecs) == 1 else f"{own}, {_backbone(records)}"
            rows.setdefault(name, (name, records, own))
    return list(rows.values())


def _codec(records: Mapping[int, Record]) -> dict[tuple[int, str, str], float]:
    """What the codec's rows measured, by seed, row and metric."""
    cells = [(seed, cell) for seed, record in records.items() for cell in record.results.cells]
    return {(seed, c.row, c.metric): c.mean for seed, c in cells if c.row in (DECODED_LQ, DECODED_HQ)}


def _alike(a: Mapping[Any, float], b: Mapping[Any, float]) -> bool:
    """Whether what both measured is the same but for rounding: threads and versions sum in another order."""
    return all(math.isclose(a[key], b[key], rel_tol=1e-3) for key in a.keys() & b.keys())


def ordered(names: Iterable[str]) -> list[str]:
    """Names of references, each once, in the order of `REFERENCES`."""
    return sorted(dict.fromkeys(names), key=lambda name: REFERENCES.index(name.partition(",")[0]))


def _backbone(records: Mapping[int, Record]) -> str:
    """The prior behind a row's records, by the last part of its place: "tiny_sdxl"."""
    settings: Any = next(iter(records.values())).settings
    place = settings.get("module", {}).get("backbone", {}).get("path", "")
    return str(place).rpartition("/")[2].rpartition(":")[2]


def column(rows: Sequence[Read], metric: str | None, title: str) -> tuple[dict[str, Number], list[str]]:
    """A metric's number of every row that has one; a number under another label than the first is a problem."""
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
    """The records behind a row under a condition that are there, by seed."""
    found: dict[int, Record] = {}
    for seed in range(plan.seeds):
        identity = plan.scores.get(Place(table=table, row=row, condition=condition, seed=seed))
        if identity is not None and plan.jobs[identity].done:
            found[seed] = read_record(plan.jobs[identity].folder)
    return found


def _number(records: Mapping[int, Record], row: str | None, metric: str) -> Number | None:
    """The number of a row of records (None: the method's own) over all their seeds."""
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
