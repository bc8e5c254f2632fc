"""The sources of a page: a planned table, or records by folder. Reads existing artefacts and runs nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from restore_lab.evaluation.records import Record, method_rows, read_record
from restore_lab.launch.job import NOT_WEIGHTS
from restore_lab.storage.artefact import Manifest, is_complete
from restore_lab.storage.foreign import leads_inside
from restore_lab.storage.walk import head
from restore_lab.tables.grid import Grid, grid
from restore_lab.tables.jobs import Place, Plan, with_dependencies
from restore_lab.tables.numbers import (
    CellKey,
    Number,
    RowRecords,
    TableNumbers,
    column,
    read_numbers,
    records_of,
    references,
    sort_references,
)
from restore_lab.tables.spec import SINGLE_CONDITION, Column, Condition, Overrides, Row, Spec
from restore_lab.training.plan import LOSSES

StageFolder = tuple[str, Path]  # stage and folder


@dataclass(frozen=True, kw_only=True)
class RecordRow:
    """A record on disk, and a row's name in it."""

    folder: Path
    record: Record
    row: str


@dataclass(frozen=True, kw_only=True)
class Block:
    """The images of one condition: runs by row title and seed; `metrics` maps a metric to whether higher is better."""

    title: str
    metrics: Mapping[str, bool]
    rows: Mapping[str, Mapping[int, RecordRow]]


@dataclass(frozen=True, kw_only=True)
class Training:
    """A trained artefact: its stage, a title with the rows that use it, and its file of losses."""

    stage: str
    title: str
    losses: Path


@dataclass(frozen=True, kw_only=True)
class PageContent:
    """Everything that a page shows; `missing` is one line, empty if the table is complete."""

    table: Grid
    blocks: Sequence[Block]
    trainings: Sequence[Training]
    missing: str


def of_table(plan: Plan, spec: Spec) -> PageContent:
    """The existing artefacts of a planned table."""
    titles = _titles({row.name: row.title for row in spec.rows.values()})
    absent = plan.missing()
    command = " ".join(["restore-lab table", spec.name, f"scale={spec.scale}", f"--seeds={plan.seeds}"])
    blocks = []
    for condition in (c for c in spec.conditions.values() if not c.mean):  # a mean has no images of its own
        columns = [spec.columns[title] for title in condition.columns]
        records = {name: records_of(plan, spec.name, name, condition.name) for name in spec.rows}
        blocks.append(
            Block(
                title=condition.title,
                metrics={c.metric: c.metric_higher_is_better for c in columns if c.metric},
                rows={
                    titles[name]: {
                        seed: _run(plan, spec, spec.rows[name], condition, seed, record)
                        for seed, record in found.items()
                    }
                    for name, found in records.items()
                    if found
                },
            )
        )
    return PageContent(
        table=grid(plan, read_numbers(plan, spec)),
        blocks=blocks,
        trainings=_trainings(_of_plan(plan, spec, titles)),
        missing=f"{len(absent)} of {len(plan.jobs)} artefacts are missing; {command} makes them" if absent else "",
    )


def of_records(folders: Sequence[Path]) -> PageContent:
    """A table of records with all of their metrics, one row per prompt variant.

    Raises:
        FileNotFoundError: if a folder has no record.
        ValueError: if a record is invalid.
    """
    records = {folder: read_record(folder) for folder in folders}
    runs = [RecordRow(folder=f, record=r, row=row) for f, r in records.items() for row in method_rows(r.results)]
    times = Counter(run.row for run in runs)
    rows = {run.row if times[run.row] == 1 else f"{run.folder}: {run.row}": run for run in runs}
    better = {cell.metric: cell.higher_is_better for r in records.values() for cell in r.results.cells}
    read: list[RowRecords] = [(name, {0: run.record}, run.row) for name, run in rows.items()]
    beside = references([{0: record} for record in records.values()])
    read += beside
    numbers: dict[CellKey, Number] = {}
    problems: list[str] = []
    for metric in better:
        own, problem = column(read, metric, metric)
        numbers |= {(name, SINGLE_CONDITION, metric): number for name, number in own.items()}
        problems += problem
    spec, named = _spec(better, rows, numbers), sort_references(name for name, _, _ in beside)
    table = TableNumbers(spec=spec, numbers=numbers, problems=problems, references=named)
    return PageContent(
        table=grid(Plan(specs=(), seeds=1), table),
        blocks=[
            Block(
                title="",
                metrics=better,
                rows={name: {0: run} for name, run in rows.items()},
            )
        ],
        trainings=_trainings(_beside(rows)),
        missing="",
    )


def _spec(better: Mapping[str, bool], rows: Collection[str], numbers: Mapping[CellKey, Number]) -> Spec:
    """A table of every metric, without published numbers."""
    large = {metric for (_, _, metric), number in numbers.items() if abs(number.mean) >= 10}
    columns = {
        metric: Column(
            title=metric,
            metric=metric,
            higher_is_better=more,
            metric_higher_is_better=more,
            digits=2 if metric in large else 4,
        )
        for metric, more in better.items()
    }
    return Spec(
        name="records",
        title=head(list(rows), count=3),
        source="",
        scale="tiny",
        words=Overrides(),
        columns=columns,
        conditions={
            SINGLE_CONDITION: Condition(name=SINGLE_CONDITION, title="", words=Overrides(), columns=tuple(columns))
        },
        rows={
            name: Row(name=name, title=name, labels={}, words=Overrides(), weights="own", system=None, published={})
            for name in rows
        },
    )


def _titles(named: Mapping[str, str]) -> dict[str, str]:
    """A unique title for each name; rows that share a title get their name added."""
    times = Counter(named.values())
    return {name: title if times[title] == 1 else f"{title} ({name})" for name, title in named.items()}


def _run(plan: Plan, spec: Spec, row: Row, condition: Condition, seed: int, record: Record) -> RecordRow:
    place = Place(table=spec.name, row=row.name, condition=condition.name, seed=seed)
    folder = Path(plan.jobs[plan.scores[place]].folder)
    return RecordRow(folder=folder, record=record, row=row.variant or method_rows(record.results)[0])


def _of_plan(plan: Plan, spec: Spec, titles: Mapping[str, str]) -> dict[StageFolder, list[str]]:
    """A table's trainings, started or done, each with the rows that need it."""
    users: dict[StageFolder, list[str]] = {}
    for place, identity in plan.scores.items():
        seed = f", seed {place.seed}" if plan.seeds > 1 else ""
        for job in with_dependencies(plan, [identity]) if place.table == spec.name else ():
            if job.kind not in NOT_WEIGHTS:
                users.setdefault((job.kind, Path(job.folder)), []).append(titles[place.row] + seed)
    return users


def _beside(rows: Mapping[str, RecordRow]) -> dict[StageFolder, list[str]]:
    """The records' trainings, if they lie next to them as commands write them: <stage>-<identity>."""
    users: dict[StageFolder, list[str]] = {}
    for title, run in rows.items():
        queue, seen = list(run.record.parents), set[str]()
        while queue:
            identity = queue.pop(0)
            if identity in seen:  # a manifest may name itself as a parent
                continue
            seen.add(identity)
            for folder in run.folder.parent.glob(f"*-{identity}"):
                if leads_inside(folder, run.folder.parent) and is_complete(folder, identity=identity):
                    manifest = Manifest.read(folder)
                    queue += manifest.parents
                    users.setdefault((manifest.kind, folder), []).append(title)
    return users


def _trainings(users: Mapping[StageFolder, Sequence[str]]) -> list[Training]:
    """The trainings with losses, titled by the rows that use them."""
    found = []
    for (stage, folder), rows in users.items():
        names = list(dict.fromkeys(rows))
        if (folder / LOSSES).is_file():
            found.append(Training(stage=stage, title=head(names, count=3), losses=folder / LOSSES))
    return found
