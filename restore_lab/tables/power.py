"""Power analysis: whether a table's images and seeds can resolve the published differences, from the measured spread.

A mean difference d over I images and S seeds is detected with 80 percent power at the 5 percent level if |d| is at
least (t_0.975 + t_0.8) times the root of (images + rest / S) / I + seeds / S, with the variance components of
statistics.py and Satterthwaite's degrees of freedom (1946). The components come from the table's own records: of the
claim's two rows, else of the pair of rows under that condition with the largest resolvable difference. With one
measured seed the variance between trainings is unknown, and the line states that.
"""

from __future__ import annotations

import bisect
import itertools

from restore_lab.evaluation.statistics import MIN_SEEDS, Components, components
from restore_lab.tables.number import Number, shared_values
from restore_lab.tables.numbers import TableNumbers
from restore_lab.tables.spec import Claim

MAX_IMAGES = 10_000_000  # a difference that needs more is not resolvable by images


def powers(table: TableNumbers, *, seeds: int) -> list[str]:
    """One line per claim whose two published numbers are of the metric that is measured here.

    Args:
        table: the measurements so far.
        seeds: planned number of seeds.
    """
    return [line for claim in table.spec.claims if (line := _power(table, claim, seeds))]


def resolvable_difference(parts: Components, *, seeds: int, images: int) -> float:
    """The smallest mean difference that these numbers of seeds and images resolve."""
    from scipy.stats import t as student

    of_images = float(parts.images[0] + parts.rest[0] / seeds) / images
    of_seeds = 0.0 if parts.seeds is None or seeds < 2 else float(parts.seeds[0]) / seeds
    whole = of_images + of_seeds
    if whole == 0 or images < 2:
        return 0.0 if whole == 0 else float("inf")
    freedom = whole**2 / (of_images**2 / (images - 1) + (of_seeds**2 / (seeds - 1) if of_seeds else 0.0))
    return float(sum(student.ppf([0.975, 0.8], freedom))) * whole**0.5


def required_images(parts: Components, difference: float, *, seeds: int) -> int | None:
    """The number of images that resolves a mean difference; None if the variance between seeds rules it out."""

    def resolves(images: int) -> bool:
        return resolvable_difference(parts, seeds=seeds, images=images) <= abs(difference)

    found = bisect.bisect_left(range(2, MAX_IMAGES), True, key=resolves)
    return found + 2 if found + 2 < MAX_IMAGES else None


def _power(table: TableNumbers, claim: Claim, seeds: int) -> str:
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
    parts, n = max(spreads, key=lambda spread: resolvable_difference(spread[0], seeds=seeds, images=spread[1]))
    found = resolvable_difference(parts, seeds=seeds, images=n)
    says += f"; n = {n} images, {seeds} seed{'s'[: seeds > 1]} resolve {found:.3g}"
    trained = table.spec.trains(claim.row) or table.spec.trains(claim.baseline)
    unknown = "; between trainings nothing is measured yet" if trained and parts.seeds is None else ""
    if trained and seeds < MIN_SEEDS:
        return f"{says}: NOT enough, rows that are trained need {MIN_SEEDS} seeds{unknown}"
    if abs(difference) >= found:
        return f"{says}: enough{unknown}"
    count = required_images(parts, difference, seeds=seeds) if difference else None
    more = f"{count} images would" if count else "no number of images would" if difference else ""
    return f"{says}: NOT enough{', ' if more else ''}{more}{unknown}"


def _spread(a: Number, b: Number) -> tuple[Components, int] | None:
    """Variance components of the paired differences and the number of images; None below three images."""
    values_NSI = shared_values([a, b])
    if values_NSI is None or values_NSI.shape[2] < 3:
        return None
    return components((values_NSI[0] - values_NSI[1])[None]), values_NSI.shape[2]
