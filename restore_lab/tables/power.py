"""Whether a table's images and seeds can resolve what the paper published: power from the spread measured so far.

A mean difference d over I images and S seeds is found with 80 percent power at the 5 percent level if |d| is at least
(t_0.975 + t_0.8) times the root of (images + rest / S) / I + seeds / S, the variance components of statistics.py, with
Satterthwaite's degrees of freedom (1946). They come from records of the table itself: of the claim's own two rows,
else those of the pair of rows under that condition that resolves least. With one seed measured, what trainings differ
by is not known, and the line says so.
"""

from __future__ import annotations

import bisect
import itertools

from restore_lab.evaluation.statistics import MIN_SEEDS, Components, components
from restore_lab.tables.number import Number, shared_values
from restore_lab.tables.numbers import Measured
from restore_lab.tables.spec import Claim

MOST = 10_000_000  # images; a difference that needs more is not resolved by images


def powers(table: Measured, *, seeds: int) -> list[str]:
    """A line for each claim whose two published numbers are of the metric that is measured here.

    Args:
        table: what was measured so far.
        seeds: how many are planned.
    """
    return [line for claim in table.spec.claims if (line := _power(table, claim, seeds))]


def resolvable(parts: Components, *, seeds: int, images: int) -> float:
    """The smallest mean difference that so many seeds and images resolve."""
    from scipy.stats import t as student

    of_images = float(parts.images[0] + parts.rest[0] / seeds) / images
    of_seeds = 0.0 if parts.seeds is None or seeds < 2 else float(parts.seeds[0]) / seeds
    whole = of_images + of_seeds
    if whole == 0 or images < 2:
        return 0.0 if whole == 0 else float("inf")
    freedom = whole**2 / (of_images**2 / (images - 1) + (of_seeds**2 / (seeds - 1) if of_seeds else 0.0))
    return float(sum(student.ppf([0.975, 0.8], freedom))) * whole**0.5


def needed(parts: Components, difference: float, *, seeds: int) -> int | None:
    """How many images resolve a mean difference; None if the seeds differ too much for any number."""
    found = bisect.bisect_left(
        range(2, MOST), True, key=lambda images: resolvable(parts, seeds=seeds, images=images) <= abs(difference)
    )
    return found + 2 if found + 2 < MOST else None


def _power(table: Measured, claim: Claim, seeds: int) -> str:
    column = table.spec.columns[claim.column]
    place = (claim.condition, claim.column)
    published = [table.spec.rows[row].published.get(place) for row in (claim.row, claim.baseline)]
    if column.stand_in or column.metric is None or published[0] is None or published[1] is None:
        return ""
    difference = published[0] - published[1]
    says = f"{claim.says}: published {difference:+.4g} {column.metric}"
    numbers = {row: table.numbers[row, *place] for row in table.spec.rows if (row, *place) in table.numbers}
    own = [numbers[row] for row in (claim.row, claim.baseline) if row in numbers]
    pairs = [tuple(own)] if len(own) == 2 else list(itertools.combinations(numbers.values(), 2))
    spreads = [spread for a, b in pairs if (spread := _spread(a, b)) is not None]
    if not spreads:
        return f"{says}; no spread measured yet"
    parts, n = max(spreads, key=lambda spread: resolvable(spread[0], seeds=seeds, images=spread[1]))
    found = resolvable(parts, seeds=seeds, images=n)
    says += f"; n = {n} images, {seeds} seed{'s'[: seeds > 1]} resolve {found:.3g}"
    trained = table.spec.trains(claim.row) or table.spec.trains(claim.baseline)
    unknown = "; between trainings nothing is measured yet" if trained and parts.seeds is None else ""
    if trained and seeds < MIN_SEEDS:
        return f"{says}: NOT enough, rows that are trained need {MIN_SEEDS} seeds{unknown}"
    if abs(difference) >= found:
        return f"{says}: enough{unknown}"
    count = needed(parts, difference, seeds=seeds) if difference else None
    more = f"{count} images would" if count else "no number of images would" if difference else ""
    return f"{says}: NOT enough{', ' if more else ''}{more}{unknown}"


def _spread(a: Number, b: Number) -> tuple[Components, int] | None:
    """Variances of the paired differences, and over how many images; None for fewer than three."""
    values_NSI = shared_values([a, b])
    if values_NSI is None or values_NSI.shape[2] < 3:
        return None
    return components((values_NSI[0] - values_NSI[1])[None]), values_NSI.shape[2]
