"""A table's figure and its findings as text; the table's file selects the kind of figure."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from restore_lab.tables.figures import frontier, surface
from restore_lab.tables.figures.settings import Frontier

if TYPE_CHECKING:
    from restore_lab.tables.numbers import TableNumbers


def figure_findings(table: TableNumbers) -> list[str]:
    """The figure's findings, one line each; empty for a table without a figure."""
    match table.spec.figure:
        case None:
            return []
        case Frontier() as figure:
            return frontier.frontier_findings(table, figure)
        case figure:
            return surface.surface_findings(table, figure)


def draw_figure(table: TableNumbers) -> bytes | None:
    """The figure as PNG; None for a table without a figure or without measurements.

    Raises:
        ValueError: if matplotlib is not installed.
    """
    if table.spec.figure is None or not table.numbers:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("pictures of tables are drawn with matplotlib: pip install 'restore-lab[figures]'") from None
    page = Figure(layout="constrained", dpi=110)
    match table.spec.figure:
        case Frontier() as figure:
            frontier.draw_frontier(table, figure, page)
        case figure:
            surface.draw_surface(table, figure, page)
    sink = io.BytesIO()
    page.savefig(sink, format="png")
    return sink.getvalue()
