"""What a page is made from: a planned table, or records by folder. Reads what is there and runs nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from restore_lab.evaluation.records import Record, method_rows, read_record
from restore_lab.launch.job import NOT_WEIGHTS
from restore_lab.storage.artefact import Manifest, complete
from restore_lab.storage.foreign import leads_inside
from restore_lab.tables.grid import Grid, grid
from restore_lab.tables.jobs import Place, Plan, behind
from restore_lab.tables.numbers import (
    At,
    Measured,
    Number,
    Read,
    column,
    measured,
    ordered,
    records_of,
    references,
)
from restore_lab.tables.spec import ONLY, Column, Condition, Row, Spec, Words
from restore_lab.training.plan import LOSSES

NAMED = 3  # rows that a title names
Artefact = tuple[str, Path]  # stage and folder


@dataclass(frozen=True, kw_only=True)
class Run:
    """A record on disk, and the name that a row has in it."""

    folder: Path
    record: Record
    row: str


@dataclass(frozen=True, kw_only=True)
class Block:
    """The images of one condition: rows by title, each with its runs by seed; metrics, and whether more is better."""

    title: str
    metrics: Mapping[str, bool]
    rows: Mapping[str, Mapping[int, Run]]


@dataclass(frozen=True, kw_only=True)
class Training:
    """A trained artefact: its stage, the rows behind which it stands, and its losses."""

    stage: str
    title: str
    losses: Path


@dataclass(frozen=True, kw_only=True)
class Source:
    """Everything that a page shows; `missing` is one line, empty if nothing is."""

    table: Grid
    blocks: Sequence[Block]
    trainings: Sequence[Training]
    missing: str


def of_table(plan: Plan, spec: Spec) -> Source:
    """What is there of a planned table."""
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
    return Source(
        table=grid(plan, measured(plan, spec)),
        blocks=blocks,
        trainings=_trainings(_of_plan(plan, spec, titles)),
        missing=f"{len(absent)} of {len(plan.jobs)} artefacts are missing; {command} makes them" if absent else "",
    )


def of_records(folders: Sequence[Path]) -> Source:
    """Records as the rows of a table of their own, every variant a row; with all of their metrics.

    Raises:
        FileNotFoundError: if a folder has no record.
        ValueError: if what is there is not one.
    """
    records = {folder: read_record(folder) for folder in folders}
    runs = [Run(folder=f, record=r, row=row) for f, r in records.items() for row in method_rows(r.results)]
    times = Counter(run.row for run in runs)
    rows = {run.row if times[run.row] == 1 else f"{run.folder}: {run.row}": run for run in runs}
    better = {cell.metric: cell.higher_is_better for r in records.values() for cell in r.results.cells}
    read: list[Read] = [(name, {0: run.record}, run.row) for name, run in rows.items()]
    beside = references([{0: record} for record in records.values()])
    read += beside
    numbers: dict[At, Number] = {}
    problems: list[str] = []
    for metric in better:
        own, problem = column(read, metric, metric)
        numbers |= {(name, ONLY, metric): number for name, number in own.items()}
        problems += problem
    spec, named = _spec(better, rows, numbers), ordered(name for name, _, _ in beside)
    table = Measured(spec=spec, numbers=numbers, problems=problems, references=named)
    return Source(
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


def _spec(better: Mapping[str, bool], rows: Collection[str], numbers: Mapping[At, Number]) -> Spec:
    """A table of every metric, nothing published."""
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
        title=_few(list(rows)),
        source="",
        scale="tiny",
        words=Words(),
        columns=columns,
        conditions={ONLY: Condition(name=ONLY, title="", words=Words(), columns=tuple(columns))},
        rows={
            name: Row(name=name, title=name, labels={}, words=Words(), weights="own", system=None, published={})
            for name in rows
        },
    )


def _titles(named: Mapping[str, str]) -> dict[str, str]:
    """A title for each name; those that several rows share tell them apart by their names."""
    times = Counter(named.values())
    return {name: title if times[title] == 1 else f"{title} ({name})" for name, title in named.items()}


def _run(plan: Plan, spec: Spec, row: Row, condition: Condition, seed: int, record: Record) -> Run:
    place = Place(table=spec.name, row=row.name, condition=condition.name, seed=seed)
    folder = Path(plan.jobs[plan.scores[place]].folder)
    return Run(folder=folder, record=record, row=row.variant or method_rows(record.results)[0])


def _of_plan(plan: Plan, spec: Spec, titles: Mapping[str, str]) -> dict[Artefact, list[str]]:
    """The trainings behind a table, begun or done, each with the rows that need it."""
    users: dict[Artefact, list[str]] = {}
    for place, identity in plan.scores.items():
        seed = f", seed {place.seed}" if plan.seeds > 1 else ""
        for job in behind(plan, [identity]) if place.table == spec.name else ():
            if job.kind not in NOT_WEIGHTS:
                users.setdefault((job.kind, Path(job.folder)), []).append(titles[place.row] + seed)
    return users


def _beside(rows: Mapping[str, Run]) -> dict[Artefact, list[str]]:
    """The trainings behind records, where they lie beside them as commands leave them: <stage>-<identity>."""
    users: dict[Artefact, list[str]] = {}
    for title, run in rows.items():
        queue, seen = list(run.record.parents), set[str]()
        while queue:
            identity = queue.pop(0)
            if identity in seen:  # a manifest may name itself
                continue
            seen.add(identity)
            for folder in run.folder.parent.glob(f"*-{identity}"):
                if leads_inside(folder, run.folder.parent) and complete(folder, identity=identity):
                    manifest = Manifest.read(folder)
                    queue += manifest.parents
                    users.setdefault((manifest.kind, folder), []).append(title)
    return users


def _trainings(users: Mapping[Artefact, Sequence[str]]) -> list[Training]:
    """Those that left losses, each named by the rows that use it."""
    found = []
    for (stage, folder), rows in users.items():
        names = list(dict.fromkeys(rows))
        if (folder / LOSSES).is_file():
            found.append(Training(stage=stage, title=_few(names), losses=folder / LOSSES))
    return found


def _few(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
