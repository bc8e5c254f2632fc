"""A table as a file: rows as overrides, columns as metrics, and what the paper printed. `experiments/<paper>/*.yaml`.

A table is an experiment whose config has a node `table`, so `restore-lab evaluate experiment=spire/table6 ...` makes by
hand what the table makes. Of that node:

    title, source: {paper, place}          what it is and where it was printed
    columns: {FID: {metric, tiny, better, digits}}    in order; `tiny` is the stand-in at scale=tiny, if another: its
                                           name, or {metric, better} where less of it is better and more of the other
    conditions: {name: {title, overrides, columns, only, mean}}   each measures every row once (a dataset, a
                                           degradation), or has the mean over the conditions that `mean` names
    rows: {name: {title, labels, weights, variant, system, only, published, note, overrides, train, evaluate, describe}}
    claims: [{says, row, baseline, column, condition, expect}]
    figure: {kind: frontier | surface, ...}           a picture beside the table (figures/settings.py)

`overrides` are for every verb, `train`, `evaluate` and `describe` for one; each may stand on the table, on a row or on
a condition, and again under `tiny` and `full` for one scale. A later word for a key replaces an earlier one: table,
condition, row. `weights` is "own" (trained by these overrides), "shipped", or another row's name; rows that differ only
in the `variant` of the words (evaluate.yaml) share one record; a row with a `system` is other people's: a folder of
their outputs, or what was printed. `published` has one list a condition, in the order of the columns, null where
nothing legible was printed. A row or a condition with `only: full` is there at that scale alone; `weights` and `mean`
may stand under `tiny` and `full` too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from restore_lab.config.conf_dir import experiments_dir
from restore_lab.config.suggest import offer
from restore_lab.tables.figures.settings import read as read_figure
from restore_lab.tables.layout import checked
from restore_lab.tables.spec import COUNTED, ONLY, TOOK, WORDS, Claim, Column, Condition, Row, Scale, Spec, Words


def tables(folders: Sequence[Path]) -> dict[str, Path]:
    """Every table file by name ("spire/table6"); an experiment without a node `table` is none."""
    found: dict[str, Path] = {}
    for folder in folders:
        base = experiments_dir(folder)
        for file in sorted(base.glob("**/*.yaml")):
            name = file.relative_to(base).with_suffix("").as_posix()
            if any(line.startswith("table:") for line in file.read_text(encoding="utf-8").splitlines()):
                found.setdefault(name, file)
    return found


def read(name: str, folders: Sequence[Path], *, scale: Scale) -> Spec:
    """A table by name.

    Args:
        name: "spire/table6".
        folders: config folders, the package's and the user's.
        scale: which of its overrides count.

    Raises:
        ValueError: if there is no such table or scale, or the file says something that no table has.
    """
    import yaml

    if scale not in get_args(Scale):
        raise ValueError(f"scale={scale!r} is not known; one of {', '.join(get_args(Scale))}")
    known = tables(folders)
    if name not in known:
        raise ValueError(f"no table {name!r}{offer(name, known)}")
    try:
        whole = yaml.safe_load(known[name].read_text(encoding="utf-8"))
        node = whole["table"] if isinstance(whole, dict) and "table" in whole else None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{known[name]}: not YAML ({' '.join(str(error).split())})") from error
    return _spec(name, node, scale)


def _spec(name: str, node: Any, scale: Scale) -> Spec:
    node = checked(node, f"table {name}")
    columns = {title: _column(name, title, entry or {}, scale) for title, entry in node["columns"].items()}
    entries = {key: entry or {} for key, entry in (node.get("conditions") or {ONLY: {}}).items()}
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


def _words(node: Mapping[str, Any], scale: Scale) -> Words:
    at_scale = node.get(scale) or {}
    return Words(**{key: (*(node.get(key) or ()), *(at_scale.get(key) or ())) for key in WORDS})


def _column(name: str, title: str, entry: Mapping[str, Any], scale: Scale) -> Column:
    stand_in = entry.get("tiny", entry.get("metric")) if scale == "tiny" else entry.get("metric")
    chosen = stand_in if isinstance(stand_in, Mapping) else {"metric": stand_in, "better": entry.get("better")}
    if entry.get("describe") not in (None, *COUNTED, *TOOK):
        known = ", ".join((*COUNTED, *TOOK))
        raise ValueError(f"table {name}, column {title}: describe={entry['describe']!r} is one of {known}")
    return Column(
        title=title,
        metric=chosen["metric"],
        higher_is_better=entry["better"] == "more",
        metric_higher_is_better=chosen["better"] == "more",
        digits=entry.get("digits", 2),
        stand_in=chosen["metric"] != entry.get("metric"),
        describe=entry.get("describe"),
    )


def _condition(name: str, key: str, entry: Mapping[str, Any], scale: Scale, columns: Mapping[str, Column]) -> Condition:
    chosen = tuple(entry.get("columns") or columns)
    if odd := [column for column in chosen if column not in columns]:
        raise ValueError(f"table {name}, condition {key}: no column {odd[0]!r}; there are {', '.join(columns)}")
    return Condition(
        name=key,
        title=entry.get("title", ""),
        words=_words(entry, scale),
        columns=chosen,
        mean=tuple(_at(entry, scale, "mean") or ()),
    )


def _at(entry: Mapping[str, Any], scale: Scale, key: str) -> Any:
    """A setting that may stand under a scale."""
    return (entry.get(scale) or {}).get(key, entry.get(key))


def _row(
    name: str,
    key: str,
    entry: Mapping[str, Any],
    scale: Scale,
    conditions: Mapping[str, Condition],
    elsewhere: Collection[str],
) -> Row:
    where = f"table {name}, row {key}"
    raw = entry.get("published") or {}
    by_condition = {next(iter(conditions)): raw} if isinstance(raw, list) else raw
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
        weights=_at(entry, scale, "weights") or "own",
        system=entry.get("system"),
        published=published,
        note=entry.get("note", ""),
        only=entry.get("only"),
        variant=entry.get("variant"),
    )


def _claim(
    name: str,
    entry: Mapping[str, Any],
    rows: Mapping[str, Row],
    columns: Mapping[str, Column],
    conditions: Mapping[str, Condition],
) -> Claim:
    where = f"table {name}, claim {entry.get('says', '')!r}"
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
