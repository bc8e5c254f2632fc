"""Quality against fidelity: one colour per method, one marker per parameter, the Pareto front as a line.

`figure: {kind: frontier}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from restore_lab.evaluation.records import DECODED_HQ, DECODED_LQ, LQ
from restore_lab.evaluation.statistics import MIN_IMAGES
from restore_lab.tables.number import shared_values
from restore_lab.tables.pareto import Points, bootstrap, hypervolume, pareto

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from restore_lab.tables.figures.settings import Frontier
    from restore_lab.tables.numbers import TableNumbers
    from restore_lab.tables.spec import Condition, Row

MARKERS = "oDs^vP<>Xhp"
REFERENCE_MARKERS = {LQ: "x", DECODED_LQ: "+", DECODED_HQ: "*"}


@dataclass(frozen=True, kw_only=True)
class Plane:
    """The points of one condition.

    Attributes:
        rows: the row of each point.
        means_N2: fidelity and quality, in the metrics' own units.
        signs_2: 1 where higher is better, else -1.
        values_NSI2: per seed and image, over those that all rows share; None for set metrics and for too few images.
    """

    rows: Sequence[Row]
    means_N2: Points
    signs_2: Points
    values_NSI2: Points | None


def plane(table: TableNumbers, figure: Frontier, condition: Condition) -> Plane | None:
    """The rows with both numbers; None if there are none."""
    names = (figure.fidelity, figure.quality)
    pairs = {
        row.name: [table.numbers[row.name, condition.name, name] for name in names]
        for row in table.spec.rows.values()
        if all((row.name, condition.name, name) in table.numbers for name in names)
    }
    if not pairs:
        return None
    values = shared_values([number for pair in pairs.values() for number in pair])
    if values is not None:
        values = np.moveaxis(values.reshape(len(pairs), 2, *values.shape[1:]), 1, 3)
    return Plane(
        rows=[table.spec.rows[name] for name in pairs],
        means_N2=np.array([[number.mean for number in pair] for pair in pairs.values()]),
        signs_2=np.array([1.0 if table.spec.columns[name].metric_higher_is_better else -1.0 for name in names]),
        values_NSI2=values if values is not None and values.shape[2] >= MIN_IMAGES else None,
    )


def frontier_findings(table: TableNumbers, figure: Frontier) -> list[str]:
    """Pareto front and hypervolume of all points and of each method's points, one line each."""
    lines = []
    for condition in table.spec.conditions.values():
        found = plane(table, figure, condition)
        if found is None:
            continue
        axes = " and ".join(_axis(table, name) for name in (figure.fidelity, figure.quality))
        where = f"{condition.title}: " if condition.title else ""
        lines.append(f"{where}{axes}; the hypervolume is counted from {figure.reference[0]:g} and "
                     f"{figure.reference[1]:g}; in brackets its 95 percent interval and the share of bootstrap draws "
                     f"over seeds and images in which a point is on the front")  # fmt: skip
        lines.append(where + _front("all", found, figure, range(len(found.rows)), titled=True))
        for title in dict.fromkeys(row.title for row in found.rows):
            own = [i for i, row in enumerate(found.rows) if row.title == title]
            lines.append(where + _front(title, found, figure, own, titled=False))
    return lines


def _front(who: str, found: Plane, figure: Frontier, own: Sequence[int], *, titled: bool) -> str:
    """One line: the points on the Pareto front, and the hypervolume that it dominates."""
    points_N2, reference_2 = found.means_N2[own] * found.signs_2, np.array(figure.reference) * found.signs_2
    sure = None
    if found.values_NSI2 is not None:
        sure = bootstrap(found.values_NSI2[own] * found.signs_2, reference_2)
    said = []
    front = np.flatnonzero(pareto(points_N2)).tolist()
    for i in sorted(front, key=lambda i: -points_N2[i, 0]):
        row, (fidelity, quality) = found.rows[own[i]], found.means_N2[own[i]]
        share = "" if sure is None else f", {100 * sure.share_N[i]:.0f} %"
        name = f"{row.title} {_setting(row, figure)}" if titled else _setting(row, figure)
        said.append(f"{name} ({fidelity:.4g}, {quality:.4g}{share})")
    interval = "" if sure is None else f" [{sure.low:.4g}, {sure.high:.4g}]"
    volume = f"hypervolume {hypervolume(points_N2, reference_2):.4g}{interval}"
    return f"{who}: {volume}; front of {len(own)} point{'s'[: len(own) > 1]}: {', '.join(said)}"


def _setting(row: Row, figure: Frontier) -> str:
    """ "tau_r 0.5" """
    return f"{row.labels.get(figure.knob, '')} {row.labels.get(figure.value, '')}".strip()


def _axis(table: TableNumbers, name: str) -> str:
    column = table.spec.columns[name]
    return f"{column.metric} ({'more' if column.metric_higher_is_better else 'less'} is better)"


def draw_frontier(table: TableNumbers, figure: Frontier, page: Figure) -> None:
    """One panel per condition; better is right and up."""
    planes = [(c, found) for c in table.spec.conditions.values() if (found := plane(table, figure, c)) is not None]
    page.set_size_inches(9 * len(planes) + 2, 8)
    rows = [row for _, found in planes for row in found.rows]
    colours = {title: f"C{i}" for i, title in enumerate(dict.fromkeys(row.title for row in rows))}
    knobs = dict.fromkeys(row.labels.get(figure.knob, "") for row in rows)
    markers = dict(zip(knobs, MARKERS * len(knobs), strict=False))
    for place, (condition, found) in enumerate(planes):
        axes = page.add_subplot(1, len(planes), place + 1)
        _points(axes, found, figure, colours, markers)
        axes.set(title=condition.title, xlabel=_axis(table, figure.fidelity), ylabel=_axis(table, figure.quality))
        axes.margins(0.08)
        axes.grid(alpha=0.25)
        _references(axes, table, figure, condition)
        for axis, sign in ((axes.xaxis, found.signs_2[0]), (axes.yaxis, found.signs_2[1])):
            axis.set_inverted(sign < 0)
    _legend(page, colours, markers)
    page.suptitle(f"{table.spec.title} (scale={table.spec.scale})")


def _points(axes: Axes, found: Plane, figure: Frontier, colours: Mapping[str, str], markers: Mapping[str, str]) -> None:
    """One point per row, with a line to its method's default; points on the front get their full name."""
    defaults = {
        row.title: point
        for row, point in zip(found.rows, found.means_N2, strict=True)
        if not row.labels.get(figure.value)
    }
    front_N = pareto(found.means_N2 * found.signs_2)
    front_N2 = found.means_N2[front_N]
    axes.plot(*front_N2[np.argsort(front_N2[:, 0])].T, color="0.6", linewidth=6, alpha=0.35, zorder=1)
    for row, point, on_front in zip(found.rows, found.means_N2, front_N, strict=True):
        colour, start = colours[row.title], defaults.get(row.title, point)
        edge = "black" if not row.labels.get(figure.value) else "white"
        axes.plot(*np.array([start, point]).T, color=colour, linewidth=0.8, alpha=0.4, zorder=2)
        axes.plot(*point, markers[row.labels.get(figure.knob, "")], color=colour, markersize=7, markeredgecolor=edge,
                  zorder=3)  # fmt: skip
        _write(axes, _setting(row, figure) if on_front else row.labels.get(figure.value, ""), point, colour)


def _references(axes: Axes, table: TableNumbers, figure: Frontier, condition: Condition) -> None:
    """LQ and the codec's rows in grey; a point outside the axes, such as D(E(HQ)), is a label at the edge."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    for name in table.references:
        numbers = [table.numbers.get((name, condition.name, column)) for column in (figure.fidelity, figure.quality)]
        if numbers[0] is None or numbers[1] is None:
            continue
        point = (numbers[0].mean, numbers[1].mean)
        inside = (float(np.clip(point[0], left, right)), float(np.clip(point[1], low, high)))
        marker = next(sign for start, sign in REFERENCE_MARKERS.items() if name.startswith(start))
        axes.plot(*inside, marker, color="0.25", markersize=9, clip_on=False, zorder=4)
        away = "" if inside == point else f" at {point[0]:.4g}, {point[1]:.4g}"
        _write(axes, name + away, inside, "0.25", left=inside[0] > (left + right) / 2)
    axes.set(xlim=(left, right), ylim=(low, high))


def _write(axes: Axes, text: str, point: Sequence[float], colour: str, *, left: bool = False) -> None:
    axes.annotate(
        text,
        (point[0], point[1]),
        xytext=(-7, 4) if left else (6, 4),
        textcoords="offset points",
        fontsize=8,
        color=colour,
        ha="right" if left else "left",
        zorder=5,
    )


def _legend(page: Figure, colours: Mapping[str, str], markers: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, linewidth=5, label=title) for title, colour in colours.items()]
    handles += [Line2D([], [], color="0.4", marker=sign, linestyle="", label=knob) for knob, sign in markers.items()]
    handles.append(Line2D([], [], color="0.6", linewidth=6, alpha=0.35, label="Pareto front"))
    page.legend(handles=handles, fontsize=9, loc="outside right upper")
