"""A table's content before any output format: cells, claims and notes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from restore_lab.evaluation.metrics.kernel_distance import KERNEL_ID
from restore_lab.evaluation.statistics import MIN_SEEDS, Difference
from restore_lab.tables.figures.figure import figure_findings
from restore_lab.tables.jobs import Plan
from restore_lab.tables.number import Number, compare_numbers
from restore_lab.tables.numbers import TableNumbers
from restore_lab.tables.ranking import marks
from restore_lab.tables.spec import TRAINING_COSTS, Claim, Column, Row


@dataclass(frozen=True, kw_only=True)
class GridCell:
    """A measured and a published number, None where missing.

    `in_paper`: the paper has a number here, perhaps an illegible one.
    """

    number: Number | None
    published: float | None
    in_paper: bool
    mark: str | None
    column: Column


@dataclass(frozen=True, kw_only=True)
class GridLine:
    """A row of the table. `kind` is "reference" (LQ, the codec's rows), "ours" (measured here), or "system"."""

    name: str
    title: str
    labels: Mapping[str, str]
    kind: str
    cells: Sequence[GridCell]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A whole table: headings as (condition, column), lines, claims and notes, and the `findings` of its figure."""

    name: str
    title: str
    source: str
    scale: str
    label_names: Sequence[str]
    headings: Sequence[tuple[str, Column]]
    lines: Sequence[GridLine]
    claims: Sequence[str]
    notes: Sequence[str]
    findings: Sequence[str] = ()


def grid(plan: Plan, table: TableNumbers) -> Grid:
    """The table's cells, claims and notes."""
    spec, marked = table.spec, marks(table)
    places = [(c, title) for c in spec.conditions.values() for title in c.columns]

    def cells(name: str, row: Row | None) -> list[GridCell]:
        return [
            GridCell(
                number=table.numbers.get((name, c.name, title)),
                published=None if row is None else row.published.get((c.name, title)),
                in_paper=row is not None and (c.name, title) in row.published,
                mark=marked.get((name, c.name, title)),
                column=spec.columns[title],
            )
            for c, title in places
        ]

    lines = [
        GridLine(name=name, title=name, labels={}, kind="reference", cells=cells(name, None))
        for name in table.references
        if any(key[0] == name for key in table.numbers)
    ]
    lines += [
        GridLine(
            name=row.name,
            title=row.title,
            labels=row.labels,
            kind="system" if row.system else "ours",
            cells=cells(row.name, row),
        )
        for row in spec.rows.values()
    ]
    return Grid(
        name=spec.name,
        title=spec.title,
        source=spec.source,
        scale=spec.scale,
        label_names=list(dict.fromkeys(key for row in spec.rows.values() for key in row.labels)),
        headings=[(c.title, spec.columns[title]) for c, title in places],
        lines=lines,
        claims=[verdict(table, claim) for claim in spec.claims],
        notes=_notes(plan, table),
        findings=figure_findings(table),
    )


def verdict(table: TableNumbers, claim: Claim) -> str:
    """Whether a claim holds, is reversed or is inconclusive, as one line.

    A claim about trained weights needs at least `MIN_SEEDS` seeds; with fewer the line gives their number instead.
    """
    a, b = (table.numbers.get((name, claim.condition, claim.column)) for name in (claim.row, claim.baseline))
    column = table.spec.columns[claim.column]
    more = claim.better == column.metric_higher_is_better
    if a is None or b is None:
        return f"{claim.says}: not run"
    values = f"{column.metric or ''} {a.mean:.4g} against {b.mean:.4g}".strip()
    found = compare_numbers(a, b)  # over the shared seeds
    rises = a.mean > b.mean if found is None else found.mean > 0
    right = "holds" if rises == more else "reversed"
    if column.describe:
        return f"{claim.says}: {'measured once' if column.describe in TRAINING_COSTS else right} ({values})"
    if found is None:
        return f"{claim.says}: no interval ({values}, a metric of sets)"
    trained = table.spec.trains(claim.row) or table.spec.trains(claim.baseline)
    seeds = f"{found.seeds} seeds" if found.seeds > 1 else "1 seed, images only"
    return f"{claim.says}: {_word(found, right, trained=trained)} ({column.metric} {found}, {seeds})"


def _word(found: Difference, right: str, *, trained: bool) -> str:
    if found.low is None:
        return "too few images"
    if trained and found.seeds < MIN_SEEDS:
        return "one seed" if found.seeds == 1 else "two seeds"
    return right if found.clear else "inconclusive"


def _notes(plan: Plan, table: TableNumbers) -> list[str]:
    """Notes on stand-in metrics, labels, missing rows and other code versions."""
    spec = table.spec
    notes = []
    if any(column.stand_in for column in spec.columns.values()):
        notes.append("a metric in parentheses stands in for the column's own: not comparable with what was published")
    notes += list(dict.fromkeys(number.label.text() for number in table.numbers.values() if number.label))
    notes += _kernels(table)
    notes += list(spec.notes)
    notes += [f"{row.full_title}: {row.note}" for row in spec.rows.values() if row.note]
    notes += [
        f"{row.full_title}: run at scale={row.only} alone"
        for row in spec.rows.values()
        if row.only not in (None, spec.scale)
    ]
    notes += uneven_rows(table)
    notes += _marked(table)
    unread = [row.full_title for row in spec.rows.values() if any(value is None for value in row.published.values())]
    if unread:
        notes.append(f'printed, but not legible in our copy of the paper ("?"): {", ".join(dict.fromkeys(unread))}')
    versions = dict.fromkeys(code for number in table.numbers.values() for code in number.code)
    if len(versions) > 1:
        notes.append(f"measured by more than one version of the code: {', '.join(versions)}")
    notes += list(dict.fromkeys(table.problems))
    refused = {p.row: why for p, why in plan.refusals.items() if p.table == spec.name}
    return [*notes, *(f"{spec.rows[row].full_title}: not run; {why}" for row, why in refused.items())]


def uneven_rows(table: TableNumbers) -> list[str]:
    """A note on the rows with fewer seeds than others."""
    found: dict[str, int] = {}
    for (row, _, _), number in table.numbers.items():
        if number.images and row in table.spec.rows:
            found[row] = min(number.seeds, found.get(row, number.seeds))
    most = max(found.values(), default=0)
    less = [f"{table.spec.rows[row].full_title} {count}" for row, count in found.items() if count < most]
    return (
        [f"seeds: {', '.join(less)}, others {most}; best, second and claims go by those that rows share"]
        if less
        else []
    )


def _marked(table: TableNumbers) -> list[str]:
    """The legend of marks and brackets, where there are any."""
    if not marks(table) and not table.spec.claims:
        return []
    seeds = {row: number.seeds for (row, _, _), number in table.numbers.items() if row in table.spec.rows}
    over = "images and seeds" if max(seeds.values(), default=1) > 1 else "images only"
    once = any(count == 1 and table.spec.trains(row) for row, count in seeds.items())
    few = "; rows that were trained once may stand in another order after another training"
    return [f"best, second and claims: paired 95 percent intervals over {over}{few if once else ''}"]


def _kernels(table: TableNumbers) -> list[str]:
    """The kernel distance of each row, where a Frechet distance is over few images.

    With its interval over images for one seed, or its deviation over several.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for (row, condition, title), number in table.numbers.items():
        if number.kernels:
            shown = table.spec.rows[row].full_title if row in table.spec.rows else row
            found.setdefault((condition, title), []).append(f"{shown} {_kernel(number)}")
    lines = []
    for (condition, title), rows in found.items():
        metric, where = table.spec.columns[title].metric or "", table.spec.conditions[condition].title
        heading = ", ".join(part for part in (title, where) if part)
        lines.append(f"{heading}: few images, so {KERNEL_ID[metric]} x 1000 beside it: {'; '.join(rows)}")
    return lines


def _kernel(number: Number) -> str:
    """ "1.5 [0.9, 2.1]", "1.5 \u00b1 0.2" """
    value = _digits(statistics.fmean(number.kernels))
    if len(number.kernels) > 1:
        return f"{value} \u00b1 {_digits(statistics.stdev(number.kernels))}"
    return value if number.interval is None else f"{value} [{', '.join(map(_digits, number.interval))}]"


def _digits(value: float) -> str:
    """Three significant digits, no exponent."""
    return f"{float(f'{value:.3g}'):g}"
