"""A table in a format: Markdown, LaTeX (booktabs), CSV, HTML, JSON. `restore-lab table NAME format=...`.

In every cell measured stands first and published behind it in brackets; "-" is not run, "?" printed but not legible.
The best is bold, the second underlined (Markdown: italic), where a paired interval tells them from the rest.
"""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Callable

from restore_lab.tables.grid import Cell, Grid
from restore_lab.tables.marks import BEST, SECOND
from restore_lab.tables.spec import Column


def render(table: Grid, format: str) -> str:  # noqa: A002  # the word on the command line
    """The table as text.

    Raises:
        ValueError: for an unknown format.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is not known; one of {', '.join(FORMATS)}")
    return FORMATS[format](table)


def markdown(table: Grid) -> str:
    """A pipe table with its claims, its findings and its notes."""
    head = ["", *table.label_names, *_headings(table)]
    body = [
        [line.title, *(line.labels.get(name, "") for name in table.label_names)]
        + [_text(cell, best="**{}**", second="*{}*") for cell in line.cells]
        for line in table.lines
    ]
    rule = ["---", *("---" for _ in table.label_names), *("---:" for _ in table.headings)]
    rows = ["| " + " | ".join(entry.replace("|", "\\|") for entry in row) + " |" for row in (head, rule, *body)]
    parts = [f"# {table.name}: {table.title}", "", f"{_of(table)}", "", *rows, ""]
    for title, said in (("Claims:", table.claims), ("Findings:", table.findings)):
        if said:
            parts += [title, "", *(f"- {line}" for line in said), ""]
    return "\n".join([*parts, *(f"- {note}" for note in table.notes)]) + "\n"


def latex(table: Grid) -> str:
    """A booktabs tabular; needs \\usepackage{booktabs}."""
    columns = "l" * (1 + len(table.label_names)) + "r" * len(table.headings)
    arrows = {True: "$\\uparrow$", False: "$\\downarrow$"}
    heads = [f"{_tex(title)}{arrows[column.metric_higher_is_better]}" for title, column in titled(table)]
    lines = [f"% {_of(table)}", f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
    lines.append(" & ".join(["", *map(_tex, table.label_names), *heads]) + r" \\")
    lines.append("\\midrule")
    for number, line in enumerate(table.lines):
        if number and line.kind != table.lines[number - 1].kind:
            lines.append("\\midrule")
        cells = [_text(cell, best="\\textbf{{{}}}", second="\\underline{{{}}}") for cell in line.cells]
        cells = [cell.replace("\u00b1", "$\\pm$") for cell in cells]
        labels = [_tex(line.labels.get(name, "")) for name in table.label_names]
        lines.append(" & ".join([_tex(line.title), *labels, *cells]) + r" \\")
    lines += ["\\bottomrule", "\\end{tabular}"]
    return "\n".join([*lines, *(f"% {line}" for line in (*table.claims, *table.findings, *table.notes))]) + "\n"


def as_csv(table: Grid) -> str:
    """One line a cell."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(
        ["table", "scale", "row", "condition", "column", "metric", "measured", "spread", "n", "seeds"]
        + ["published", "mark", "protocol", "code"]
    )
    for line in table.lines:
        for (condition, column), cell in zip(table.headings, line.cells, strict=True):
            n = cell.number
            found = ["", "", "", ""] if n is None else [n.mean, "" if n.spread is None else n.spread, n.n, n.seeds]
            published = "" if cell.published is None else cell.published
            made = ["", ""] if n is None else [n.label.says() if n.label else "", " ".join(n.code)]
            writer.writerow(
                [table.name, table.scale, line.name, condition, column.title, column.metric or "", *found]
                + [published, cell.mark or "", *made]
            )
    return sink.getvalue()


def as_html(table: Grid) -> str:
    """A table element with its notes; styles are the page's."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in ("", *table.label_names, *_headings(table)))
    rows = []
    for line in table.lines:
        labels = "".join(f"<td>{html.escape(line.labels.get(name, ''))}</td>" for name in table.label_names)
        cells = "".join(f"<td>{_text(c, best='<b>{}</b>', second='<u>{}</u>')}</td>" for c in line.cells)
        rows.append(f'<tr class="{line.kind}"><th>{html.escape(line.title)}</th>{labels}{cells}</tr>')
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in (*table.claims, *table.findings, *table.notes))
    title = f"{html.escape(table.name)}: {html.escape(table.title)}"
    return (
        f"<section><h2>{title}</h2><p>{html.escape(_of(table))}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table><ul>{notes}</ul></section>\n"
    )


def as_json(table: Grid) -> str:
    """Everything, nested."""
    lines = [
        {
            "row": line.name,
            "title": line.title,
            "kind": line.kind,
            "labels": dict(line.labels),
            "cells": [
                {
                    "condition": condition,
                    "column": column.title,
                    "metric": column.metric,
                    "measured": None if cell.number is None else cell.number.mean,
                    "spread": None if cell.number is None else cell.number.spread,
                    "n": None if cell.number is None else cell.number.n,
                    "seeds": None if cell.number is None else cell.number.seeds,
                    "protocol": cell.number.label.says() if cell.number and cell.number.label else None,
                    "published": cell.published,
                    "mark": cell.mark,
                }
                for (condition, column), cell in zip(table.headings, line.cells, strict=True)
            ],
        }
        for line in table.lines
    ]
    whole = {"table": table.name, "title": table.title, "source": table.source, "scale": table.scale, "rows": lines}
    said = {"claims": list(table.claims), "findings": list(table.findings), "notes": list(table.notes)}
    return json.dumps({**whole, **said}, indent=1, allow_nan=False)


def claims(table: Grid) -> str:
    """The claims alone, each under its table's name."""
    return "".join(f"- {table.name}: {claim}\n" for claim in table.claims)


FORMATS: dict[str, Callable[[Grid], str]] = {
    "markdown": markdown,
    "latex": latex,
    "csv": as_csv,
    "html": as_html,
    "json": as_json,
    "claims": claims,
}
ENDINGS = {"markdown": "md", "latex": "tex", "csv": "csv", "html": "html", "json": "json"}


def cell_parts(cell: Cell) -> tuple[str, str, str]:
    """What is measured, its spread over seeds, and what is published; "" for what there is none of."""
    digits, number = cell.column.digits, cell.number
    published = "" if not cell.printed else f"[{'?' if cell.published is None else f'{cell.published:.{digits}f}'}]"
    if number is None:
        return "", "", published
    own = digits if not cell.column.stand_in else 2 if abs(number.mean) >= 10 else 4
    spread = "" if number.spread is None else f" \u00b1 {number.spread:.{own}f}"
    return f"{number.mean:.{own}f}", spread, published


def _text(cell: Cell, *, best: str, second: str) -> str:
    """Measured, marked, and published in brackets."""
    measured, spread, published = cell_parts(cell)
    if not measured:
        return published or "-"
    return f"{({BEST: best, SECOND: second}.get(cell.mark or '', '{}')).format(measured)}{spread} {published}".rstrip()


def titled(table: Grid) -> list[tuple[str, Column]]:
    """The headings; a stand-in's own name comes behind what it stands for."""
    titles = [(f"{c.title} ({c.metric})" if c.stand_in else c.title, condition, c) for condition, c in table.headings]
    return [(f"{condition}: {title}" if condition else title, c) for title, condition, c in titles]


def _headings(table: Grid) -> list[str]:
    return [f"{title} {'+' if column.metric_higher_is_better else '-'}" for title, column in titled(table)]


def _of(table: Grid) -> str:
    return f"{table.source}; scale={table.scale}; measured [published]"


def _tex(text: str) -> str:
    for sign in "&%$#_{}":
        text = text.replace(sign, f"\\{sign}")
    return text
