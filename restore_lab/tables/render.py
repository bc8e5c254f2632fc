"""Output formats of a table: Markdown, LaTeX (booktabs), CSV, HTML, JSON. `restore-lab table NAME format=...`.

Each cell has the measured number, then the published one in brackets; "-" is not run, "?" illegible in the paper. The
best is bold, the second underlined (Markdown: italic), where a paired interval separates them from the rest. A wide
table of several conditions is split into one per condition; a single condition is named in the table's corner.
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace

from restore_lab.storage.safe_names import spreadsheet_cell
from restore_lab.tables.grid import Grid, GridCell
from restore_lab.tables.ranking import BEST, SECOND
from restore_lab.tables.spec import Column

TEX = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
}
WIDE = 10  # columns; a table with several conditions and more columns is split


def render_table(table: Grid, output_format: str) -> str:
    """The table as text.

    Raises:
        ValueError: for an unknown format.
    """
    if output_format not in RENDERERS:
        raise ValueError(f"format={output_format!r} is not known; one of {', '.join(RENDERERS)}")
    return RENDERERS[output_format](table)


def markdown(table: Grid) -> str:
    """Pipe tables with the claims, the findings and the notes."""
    lines = [f"# {_plain(f'{table.name}: {table.title}')}", "", _plain(_of(table)), ""]
    for corner, part in parts(table):
        head = [corner, *part.label_names, *_headings(part)]
        body = [
            [line.title, *(line.labels.get(name, "") for name in part.label_names)]
            + [_text(cell, best="**{}**", second="*{}*") for cell in line.cells]
            for line in part.lines
        ]
        rule = ["---", *("---" for _ in part.label_names), *("---:" for _ in part.headings)]
        lines += [
            "| " + " | ".join(_plain(entry).replace("|", "\\|") for entry in row) + " |" for row in (head, rule, *body)
        ]
        lines.append("")
    for title, items in (("Claims:", table.claims), ("Findings:", table.findings)):
        if items:
            lines += [title, "", *(f"- {_plain(line)}" for line in items), ""]
    return "\n".join([*lines, *(f"- {_plain(note)}" for note in table.notes)]) + "\n"


def latex(table: Grid) -> str:
    """A booktabs tabular, or several; needs \\usepackage{booktabs}."""
    tabulars = "\n\n".join(_tabular(part, corner) for corner, part in parts(table))
    remarks = (*table.claims, *table.findings, *table.notes)
    return "\n".join([_remark(_of(table)), tabulars, *map(_remark, remarks)]) + "\n"


def as_csv(table: Grid) -> str:
    """CSV, one line per cell."""
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
            made = ["", ""] if n is None else [n.label.text() if n.label else "", " ".join(n.code)]
            row = [table.name, table.scale, line.name, condition, column.title, column.metric or "", *found]
            writer.writerow([spreadsheet_cell(entry) for entry in (*row, published, cell.mark or "", *made)])
    return sink.getvalue()


def as_html(table: Grid) -> str:
    """HTML table elements with claims and notes, without styles."""
    tables = "".join(_table_element(part, corner) for corner, part in parts(table))
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in (*table.claims, *table.findings, *table.notes))
    title = f"{html.escape(table.name)}: {html.escape(table.title)}"
    return f"<section><h2>{title}</h2><p>{html.escape(_of(table))}</p>{tables}<ul>{notes}</ul></section>\n"


def as_json(table: Grid) -> str:
    """The whole table as nested JSON."""
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
                    "protocol": cell.number.label.text() if cell.number and cell.number.label else None,
                    "published": cell.published,
                    "mark": cell.mark,
                }
                for (condition, column), cell in zip(table.headings, line.cells, strict=True)
            ],
        }
        for line in table.lines
    ]
    whole = {"table": table.name, "title": table.title, "source": table.source, "scale": table.scale, "rows": lines}
    texts = {"claims": list(table.claims), "findings": list(table.findings), "notes": list(table.notes)}
    return json.dumps({**whole, **texts}, indent=1, allow_nan=False)


def claims(table: Grid) -> str:
    """The claims only, under the table's name."""
    return "".join(f"- {table.name}: {claim}\n" for claim in table.claims)


RENDERERS: dict[str, Callable[[Grid], str]] = {
    "markdown": markdown,
    "latex": latex,
    "csv": as_csv,
    "html": as_html,
    "json": as_json,
    "claims": claims,
}
EXTENSIONS = {"markdown": "md", "latex": "tex", "csv": "csv", "html": "html", "json": "json"}


def parts(table: Grid) -> list[tuple[str, Grid]]:
    """The table whole, or split by condition, each part with the text in its corner."""
    conditions = list(dict.fromkeys(condition for condition, _ in table.headings))
    if len(conditions) > 1 and len(table.headings) <= WIDE:
        return [("", table)]
    found = []
    for condition in conditions:
        kept = [place for place, (own, _) in enumerate(table.headings) if own == condition]
        lines = [replace(line, cells=[line.cells[place] for place in kept]) for line in table.lines]
        headings = [("", table.headings[place][1]) for place in kept]
        found.append((condition, replace(table, headings=headings, lines=lines)))
    return found


def cell_parts(cell: GridCell) -> tuple[str, str, str]:
    """The measured number, its spread over seeds, and the published number; "" for a missing one."""
    digits, number = cell.column.digits, cell.number
    published = "" if not cell.in_paper else f"[{'?' if cell.published is None else f'{cell.published:.{digits}f}'}]"
    if number is None:
        return "", "", published
    own = digits if not cell.column.stand_in else 2 if abs(number.mean) >= 10 else 4
    spread = "" if number.spread is None else f" \u00b1 {number.spread:.{own}f}"
    return f"{number.mean:.{own}f}", spread, published


def _tabular(table: Grid, corner: str) -> str:
    columns = "l" * (1 + len(table.label_names)) + "r" * len(table.headings)
    arrows = {True: "$\\uparrow$", False: "$\\downarrow$"}
    heads = [f"{_tex(title)}{arrows[column.metric_higher_is_better]}" for title, column in column_headings(table)]
    lines = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
    lines.append(" & ".join([_tex(corner), *map(_tex, table.label_names), *heads]) + r" \\")
    lines.append("\\midrule")
    for number, line in enumerate(table.lines):
        if number and line.kind != table.lines[number - 1].kind:
            lines.append("\\midrule")
        cells = [_text(cell, best="\\textbf{{{}}}", second="\\underline{{{}}}") for cell in line.cells]
        cells = [cell.replace("\u00b1", "$\\pm$") for cell in cells]
        labels = [_tex(line.labels.get(name, "")) for name in table.label_names]
        lines.append(" & ".join([_tex(line.title), *labels, *cells]) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def _table_element(table: Grid, corner: str) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in (corner, *table.label_names, *_headings(table)))
    rows = []
    for line in table.lines:
        labels = "".join(f"<td>{html.escape(line.labels.get(name, ''))}</td>" for name in table.label_names)
        cells = "".join(f"<td>{_text(c, best='<b>{}</b>', second='<u>{}</u>')}</td>" for c in line.cells)
        rows.append(f'<tr class="{line.kind}"><th>{html.escape(line.title)}</th>{labels}{cells}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _text(cell: GridCell, *, best: str, second: str) -> str:
    """The measured number with its mark, then the published one in brackets."""
    measured, spread, published = cell_parts(cell)
    if not measured:
        return published or "-"
    return f"{({BEST: best, SECOND: second}.get(cell.mark or '', '{}')).format(measured)}{spread} {published}".rstrip()


def column_headings(table: Grid) -> list[tuple[str, Column]]:
    """The headings; a stand-in's own name follows the metric that it stands for."""
    titles = [(f"{c.title} ({c.metric})" if c.stand_in else c.title, condition, c) for condition, c in table.headings]
    return [(f"{condition}: {title}" if condition else title, c) for title, condition, c in titles]


def _headings(table: Grid) -> list[str]:
    return [f"{title} {'+' if column.metric_higher_is_better else '-'}" for title, column in column_headings(table)]


def _of(table: Grid) -> str:
    return f"{table.source}; scale={table.scale}; measured [published]"


def _tex(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return "".join(TEX.get(sign, sign) for sign in " ".join(text.split()))


def _remark(text: str) -> str:
    """Any text as one line of LaTeX comment."""
    return f"% {' '.join(text.split())}"


def _plain(text: str) -> str:
    """Any text as one line of Markdown without HTML, images and links."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", " ".join(text.split())).replace("](", "]\\(")
