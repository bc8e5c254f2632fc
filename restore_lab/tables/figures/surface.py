"""Heat maps over instructed and true strength, with the best instruction per true strength framed.

`figure: {kind: surface}`. The findings give the rank correlation of the two. Shapes: T true strengths, S instructed
strengths, I images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from restore_lab.evaluation.statistics import MIN_IMAGES, common_grid, rank_correlation, redraw
from restore_lab.tables.number import shared_values

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from restore_lab.tables.figures.settings import Surface
    from restore_lab.tables.numbers import TableNumbers
    from restore_lab.tables.pareto import Points


def strength_means(table: TableNumbers, figure: Surface, column: str) -> Points:
    """(S, T) means of a column; NaN where there is no measurement."""
    cells = [[table.numbers.get((row, condition, column)) for condition in figure.actual] for row in figure.instructed]
    return np.array([[np.nan if cell is None else cell.mean for cell in line] for line in cells])


def best_instructions(table: TableNumbers, figure: Surface) -> dict[int, int]:
    """The index S of the best instructed strength for each index T of a true one; only for complete columns."""
    means_ST = strength_means(table, figure, figure.best) * _sign(table, figure)
    return {t: int(line_S.argmax()) for t, line_S in enumerate(means_ST.T) if not np.isnan(line_S).any()}


def surface_findings(table: TableNumbers, figure: Surface) -> list[str]:
    """The best instructed strength for each true one, and the rank correlations, one line each."""
    instructed, true = list(figure.instructed.values()), list(figure.actual.values())
    metric, sign = table.spec.columns[figure.best].metric, _sign(table, figure)
    means_ST, found = strength_means(table, figure, figure.best), best_instructions(table, figure)
    lines, chosen_TI = [], []
    for t, s in found.items():
        condition = list(figure.actual)[t]
        numbers = [table.numbers[row, condition, figure.best] for row in figure.instructed]
        values_SI = sign * common_grid([number.images for number in numbers]).values_NSI.mean(axis=1)
        chosen_TI.append(np.array(instructed)[values_SI.argmax(axis=0)])
        worst = means_ST[(sign * means_ST[:, t]).argmin(), t]
        sure = _share_best(shared_values(numbers), s, sign)
        levels = f"{metric} {means_ST[s, t]:.4g}, the worst has {worst:.4g}"
        lines.append(f"true {true[t]:g}: instructed {instructed[s]:g} is best ({levels}{sure})")
    if len(found) < 3:
        return lines
    at = [true[t] for t in found]
    whole = _correlation(at, [instructed[s] for s in found.values()])
    each = np.mean([_correlation(at, own) for own in np.array(chosen_TI).T])
    both = f"{whole:+.2f} by the means, {each:+.2f} in the mean over images"
    lines.append(f"true against best instructed strength, rank correlation: {both} (0 where the same is always best)")
    for name in figure.columns:
        if name != figure.best:
            lines_TS = strength_means(table, figure, name).T
            along = ", ".join(f"{_correlation(instructed, lines_TS[t]):+.2f} at {true[t]:g}" for t in found)
            lines.append(f"{table.spec.columns[name].metric} against the instruction, rank correlation: {along}")
    return lines


def _sign(table: TableNumbers, figure: Surface) -> float:
    return 1.0 if table.spec.columns[figure.best].metric_higher_is_better else -1.0


def _share_best(values_NSI: Points | None, best: int, sign: float) -> str:
    """The share of bootstrap draws over seeds and images in which the best strength is best; "" for too few images."""
    if values_NSI is None or values_NSI.shape[2] < MIN_IMAGES:
        return ""
    share = np.mean((sign * redraw(values_NSI)).argmax(axis=1) == best)
    return f"; best in {100 * share:.0f} % of bootstrap draws over seeds and images"


def _correlation(first: Sequence[float] | Points, second: Sequence[float] | Points) -> float:
    """Spearman's rank correlation; 0 where one of them is constant."""
    return 0.0 if np.ptp(first) == 0 or np.ptp(second) == 0 else rank_correlation(first, second)


def draw_surface(table: TableNumbers, figure: Surface, page: Figure) -> None:
    """One heat map per column: true strength on the x axis, instructed strength on the y axis."""
    from matplotlib.patches import Rectangle

    page.set_size_inches(5.4 * len(figure.columns), 4.8)
    for place, name in enumerate(figure.columns):
        axes = page.add_subplot(1, len(figure.columns), place + 1)
        means_ST = strength_means(table, figure, name)
        shades_ST = means_ST - means_ST.mean(axis=0)  # shows the effect of the instruction, not of the input's quality
        axes.imshow(shades_ST, origin="lower", cmap="viridis", aspect="auto")
        middle = (np.nanmin(shades_ST) + np.nanmax(shades_ST)) / 2
        for (s, t), value in np.ndenumerate(means_ST):
            colour = "black" if shades_ST[s, t] > middle else "white"
            axes.text(t, s, f"{value:.4g}", ha="center", va="center", fontsize=8, color=colour)
        for t, s in best_instructions(table, figure).items():
            axes.add_patch(Rectangle((t - 0.47, s - 0.47), 0.94, 0.94, fill=False, edgecolor="red", linewidth=2.5))
        axes.set_xticks(range(len(figure.actual)), [f"{value:g}" for value in figure.actual.values()])
        axes.set_yticks(range(len(figure.instructed)), [f"{value:g}" for value in figure.instructed.values()])
        axes.set(title=table.spec.columns[name].metric, xlabel="true strength", ylabel="instructed strength")
    metric = table.spec.columns[figure.best].metric
    shown = f"coloured by the difference to the column's mean; framed: best {metric}"
    page.suptitle(f"{table.spec.title} (scale={table.spec.scale}); {shown}", fontsize=10)
