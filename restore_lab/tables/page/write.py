"""`restore-lab report`: one HTML file with a table, its training curves and its images; it opens from disk.

The page is `page.html` with `page.css`, the scripts and one JSON element of data inlined. It fetches nothing: images
are data: URIs, and its Content-Security-Policy forbids all other sources.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, TypedDict

from restore_lab.launch.job import config_folders
from restore_lab.storage.outputs import require_free, write_output
from restore_lab.tables import file
from restore_lab.tables.grid import Grid, GridCell
from restore_lab.tables.page.browser import Pictures, browser
from restore_lab.tables.page.curves import charts
from restore_lab.tables.page.sources import PageContent, of_records, of_table
from restore_lab.tables.plan import plan_tables
from restore_lab.tables.render import cell_parts, column_headings

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)
MAX_REFUSALS = 5  # refused files listed on the page
HERE = Path(__file__).parent
SCRIPTS = ("dom.js", "table.js", "curves.js", "zoom.js", "viewer.js", "browser.js", "main.js")  # in this order


class PageCell(TypedDict):
    """A cell's texts, and its numbers; `value` is the sort key, `printed` the paper's number."""

    measured: str
    spread: str
    published: str
    mark: str | None
    value: float | None
    printed: float | None


class PageLine(TypedDict):
    """A row of the table, with one label and one cell per column."""

    title: str
    kind: str
    labels: list[str]
    cells: list[PageCell]


class PageColumn(TypedDict):
    """A column's heading, and whether more is better."""

    title: str
    condition: str
    more: bool


class PageTable(TypedDict):
    """A table as the page's script reads it."""

    name: str
    title: str
    source: str
    labels: list[str]
    columns: list[PageColumn]
    lines: list[PageLine]
    claims: list[str]
    notes: list[str]


def write_report(cfg: DictConfig) -> Path:
    """Run `restore-lab report`: write the page, print its path, and log what is missing.

    Raises:
        ValueError: without exactly one of a table and records, or if the output is a folder.
    """
    output = Path(cfg.output).expanduser()
    if output.is_dir():
        raise ValueError(f"output={cfg.output} is a folder; name the file to write: output=report.html")
    require_free([output])
    source = _source(cfg)
    text = render_page(source, images=int(cfg.images), worst=int(cfg.worst))
    write_output(output, text.encode())
    if source.missing:
        log.info("%s", source.missing)
    log.info("report: %s (%.1f MB)", output, output.stat().st_size / 1e6)
    return output


def _source(cfg: DictConfig) -> PageContent:
    if bool(cfg.table) == bool(cfg.records):
        raise ValueError("name a table (restore-lab report spire/table6) or records (records=[FOLDER,FOLDER])")
    if cfg.records:
        folders = [cfg.records] if isinstance(cfg.records, str) else cfg.records
        return of_records([Path(folder).expanduser() for folder in folders])
    spec = file.read_spec(cfg.table, config_folders(), scale=cfg.at_scale)
    store = Path(cfg.runs_dir) / cfg.name
    seeds, words = int(cfg.seeds), list(cfg.overrides)
    return of_table(plan_tables([spec], store=store, seeds=seeds, words=words, weights_dir=cfg.weights_dir), spec)


def render_page(source: PageContent, *, images: int, worst: int) -> str:
    """The HTML page.

    Args:
        source: the table, its trainings and its images.
        images: maximum number of images per condition.
        worst: number of each row's worst images by each metric that are always included.
    """
    pictures = Pictures()
    blocks = [browser(block, pictures, limit=images, worst=worst) for block in source.blocks]
    for line in pictures.refusals:
        log.warning("%s", line)
    data = {
        "table": table(source.table),
        "missing": "; ".join([*([source.missing] if source.missing else []), *pictures.refusals[:MAX_REFUSALS]]),
        "charts": charts(source.trainings),
        "blocks": blocks,
        "pictures": pictures.uris,
    }
    scripts = [f"<script>\n{(HERE / name).read_text(encoding='utf-8')}</script>" for name in SCRIPTS]
    return Template((HERE / "page.html").read_text(encoding="utf-8")).substitute(
        style=(HERE / "page.css").read_text(encoding="utf-8"), data=embed_json(data), scripts="\n".join(scripts)
    )


def embed_json(data: object) -> str:
    """JSON that is safe inside a script element: "<" is escaped, so it cannot end the element or open a comment."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def table(grid: Grid) -> PageTable:
    """The table as the page's script reads it."""
    scale = f", scale={grid.scale}" if grid.source else ""
    return {
        "name": grid.name,
        "title": grid.title,
        "source": grid.source + scale,
        "labels": list(grid.label_names),
        "columns": [
            {"title": title, "condition": condition, "more": column.metric_higher_is_better}
            for (condition, column), title in zip(grid.headings, headings(grid), strict=True)
        ],
        "lines": [
            {
                "title": line.title,
                "kind": line.kind,
                "labels": [line.labels.get(name, "") for name in grid.label_names],
                "cells": [_cell(cell) for cell in line.cells],
            }
            for line in grid.lines
        ],
        "claims": list(grid.claims),
        "notes": list(grid.notes),
    }


def headings(grid: Grid) -> list[str]:
    """The column headings without their conditions, which have a row of their own above."""
    return [
        title.removeprefix(f"{c}: ") for (c, _), (title, _) in zip(grid.headings, column_headings(grid), strict=True)
    ]


def _cell(cell: GridCell) -> PageCell:
    measured, spread, published = cell_parts(cell)
    return {
        "measured": measured,
        "spread": spread,
        "published": published,
        "mark": cell.mark,
        "value": None if cell.number is None else cell.number.mean,
        "printed": cell.published,
    }
