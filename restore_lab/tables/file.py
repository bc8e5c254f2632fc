"""Table files `experiments/<paper>/*.yaml`: rows as overrides, columns as metrics, and the published numbers.

A table is an experiment whose config has a node `table`, so `restore-lab evaluate experiment=spire/table6 ...` runs one
of its evaluations by hand. The node holds:

    title, source: {paper, place}          title, and the table's number in the paper
    columns: {FID: {metric, tiny, better, digits}}    in order; `tiny` is the stand-in metric at scale=tiny: its name,
                                           or {metric, better} where its direction differs
    conditions: {name: {title, overrides, columns, only, mean}}   each evaluates every row once (a dataset, a
                                           degradation), or averages the conditions that `mean` lists
    rows: {name: {title, labels, weights, prompt_set, system, only, published, note, overrides, train, evaluate,
                  describe}}
    claims: [{says, row, baseline, column, condition, expect}]
    figure: {kind: frontier | surface, ...}           a figure of the table (figures/settings.py)

`overrides` apply to every verb, `train`, `evaluate` and `describe` to one; the table, a row and a condition may each
have them, and again under `tiny` and `full` for one scale. For one key the last override wins, in the order table,
condition, row. `weights` is "own" (trained with these overrides), "shipped", or another row's name; rows that differ
only in the `prompt_set` (evaluate.yaml) share one record; a row with a `system` is an external system: a folder of
its outputs, or its published numbers. `published` has one list per condition, in the order of the columns, null where
the paper's number is illegible. A row or a condition with `only: full` exists at that scale only; `tiny` and `full` may
also hold `weights` and `mean`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from restore_lab.config.conf_dir import experiments_dir
from restore_lab.config.kinds import Scale
from restore_lab.config.suggest import offer
from restore_lab.config.validate import check_arguments
from restore_lab.tables.figures.settings import read_figure
from restore_lab.tables.schema import (
    AtScale,
    ClaimEntry,
    ColumnEntry,
    ConditionEntry,
    RowEntry,
    Scaled,
    TableEntry,
    validate,
)
from restore_lab.tables.spec import (
    DESCRIPTION_COUNTS,
    OVERRIDE_KEYS,
    SINGLE_CONDITION,
    TRAINING_COSTS,
    Claim,
    Column,
    Condition,
    Overrides,
    Row,
    Spec,
)


def tables(folders: Sequence[Path]) -> dict[str, Path]:
    """Every table file by name ("spire/table6"); experiments without a node `table` are left out."""
    found: dict[str, Path] = {}
    for folder in folders:
        base = experiments_dir(folder)
        for file in sorted(base.glob("**/*.yaml")):
            name = file.relative_to(base).with_suffix("").as_posix()
            if any(line.startswith("table:") for line in file.read_text(encoding="utf-8").splitlines()):
                found.setdefault(name, file)
    return found


@check_arguments
def read_spec(name: str, folders: Sequence[Path], *, scale: Scale) -> Spec:
    """A table by name.

    Args:
        name: "spire/table6".
        folders: config folders, the package's and the user's.
        scale: selects the overrides of one scale.

    Raises:
        ValueError: for an unknown table or scale, or an invalid file.
    """
    import yaml

    known = tables(folders)
    if name not in known:
        raise ValueError(f"no table {name!r}{offer(name, known)}")
    try:
        whole = yaml.safe_load(known[name].read_text(encoding="utf-8"))
        node = whole["table"] if isinstance(whole, dict) and "table" in whole else None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{known[name]}: not YAML ({' '.join(str(error).split())})") from error
    return _spec(name, validate(node, f"table {name}"), scale)


def _spec(name: str, node: TableEntry, scale: Scale) -> Spec:
    columns = {title: _column(name, title, entry, scale) for title, entry in node["columns"].items()}
    given: Mapping[str, ConditionEntry | None] = node.get("conditions") or {SINGLE_CONDITION: None}
    entries: dict[str, ConditionEntry] = {key: entry or {} for key, entry in given.items()}
    conditions = {
        key: _condition(name, key, entry, scale, columns)
        for key, entry in entries.items()
        if entry.get("only") in (None, scale)
    }
    for condition in conditions.values():
        if odd := [other for other in condition.mean if other not in conditions or conditions[other].mean]:
            raise ValueError(f"table {name}, condition {condition.name}: mean of {odd[0]!r}, which measures nothing")
    elsewhere = entries.keys() - conditions.keys()
    rows = {key: _row(name, key, entry or {}, scale, conditions, elsewhere) for key, entry in node["rows"].items()}
    for row in rows.values():
        if row.weights not in ("own", "shipped", *rows):
            raise ValueError(f"table {name}, row {row.name}: weights={row.weights!r} is own, shipped or a row's name")
    source = node.get("source") or {}
    return Spec(
        name=name,
        title=node["title"],
        source=", ".join(str(source[key]) for key in ("paper", "place") if key in source),
        scale=scale,
        words=_words(node, scale),
        columns=columns,
        conditions=conditions,
        rows=rows,
        claims=tuple(_claim(name, entry, rows, columns, conditions) for entry in node.get("claims") or ()),
        notes=tuple(node.get("notes") or ()),
        figure=read_figure(
            node.get("figure"), f"table {name}", scale, columns=[*columns], conditions=[*conditions], rows=[*rows]
        ),
    )


def _at_scale(entry: Scaled, scale: Scale) -> AtScale:
    return entry.get(scale) or {}


def _words(entry: Scaled, scale: Scale) -> Overrides:
    at_scale = _at_scale(entry, scale)
    return Overrides(**{key: (*(entry.get(key) or ()), *(at_scale.get(key) or ())) for key in OVERRIDE_KEYS})


def _column(name: str, title: str, entry: ColumnEntry, scale: Scale) -> Column:
    metric, better, describe = entry.get("metric"), entry["better"], entry.get("describe")
    if scale == "tiny" and "tiny" in entry:
        stand_in = entry["tiny"]
        if stand_in is None or isinstance(stand_in, str):
            metric = stand_in
        else:
            metric, better = stand_in["metric"], stand_in["better"]
    if describe not in (None, *DESCRIPTION_COUNTS, *TRAINING_COSTS):
        known = ", ".join((*DESCRIPTION_COUNTS, *TRAINING_COSTS))
        raise ValueError(f"table {name}, column {title}: describe={describe!r} is one of {known}")
    return Column(
        title=title,
        metric=metric,
        higher_is_better=entry["better"] == "more",
        metric_higher_is_better=better == "more",
        digits=entry.get("digits", 2),
        stand_in=metric != entry.get("metric"),
        describe=describe,
    )


def _condition(name: str, key: str, entry: ConditionEntry, scale: Scale, columns: Mapping[str, Column]) -> Condition:
    chosen = tuple(entry.get("columns") or columns)
    if odd := [column for column in chosen if column not in columns]:
        raise ValueError(f"table {name}, condition {key}: no column {odd[0]!r}; there are {', '.join(columns)}")
    return Condition(
        name=key,
        title=entry.get("title", ""),
        words=_words(entry, scale),
        columns=chosen,
        mean=tuple(_at_scale(entry, scale).get("mean", entry.get("mean")) or ()),
    )


def _row(
    name: str,
    key: str,
    entry: RowEntry,
    scale: Scale,
    conditions: Mapping[str, Condition],
    elsewhere: Collection[str],
) -> Row:
    where = f"table {name}, row {key}"
    raw = entry.get("published") or {}
    by_condition = raw if isinstance(raw, Mapping) else {next(iter(conditions)): raw}
    published: dict[tuple[str, str], float | None] = {}
    for condition, numbers in by_condition.items():
        if condition in elsewhere:
            continue
        if condition not in conditions:
            raise ValueError(f"{where}: published for {condition!r}, which is no condition of it")
        titles = conditions[condition].columns
        if len(numbers) != len(titles):
            raise ValueError(f"{where}: {len(numbers)} published numbers for {len(titles)} columns ({condition})")
        published |= {(condition, title): value for title, value in zip(titles, numbers, strict=True)}
    return Row(
        name=key,
        title=entry.get("title", key),
        labels={k: str(v) for k, v in (entry.get("labels") or {}).items()},
        words=_words(entry, scale),
        weights=_at_scale(entry, scale).get("weights", entry.get("weights")) or "own",
        system=entry.get("system"),
        published=published,
        note=entry.get("note", ""),
        only=entry.get("only"),
        prompt_set=entry.get("prompt_set"),
    )


def _claim(
    name: str,
    entry: ClaimEntry,
    rows: Mapping[str, Row],
    columns: Mapping[str, Column],
    conditions: Mapping[str, Condition],
) -> Claim:
    where = f"table {name}, claim {entry['says']!r}"
    condition = entry.get("condition", next(iter(conditions)))
    for value, known in ((entry["row"], rows), (entry["baseline"], rows), (entry["column"], columns)):
        if value not in known:
            raise ValueError(f"{where}: there is no {value!r}; there are {', '.join(known)}")
    if condition not in conditions:
        raise ValueError(f"{where}: condition is one of {', '.join(conditions)}")
    return Claim(
        says=entry["says"],
        row=entry["row"],
        baseline=entry["baseline"],
        column=entry["column"],
        condition=condition,
        better=entry["expect"] == "better",
    )
