"""Whether a table's images can resolve what the paper published: a power estimate from the spread measured so far.

A paired difference of mean d over n images whose deviation is s is found with 80 percent power at the 5 percent level
if |d| is at least (1.96 + 0.84) s / sqrt(n). The deviation comes from records of the table itself: of the claim's own
two rows, else the largest among its rows under that condition. Seeds add nothing here: runs on one image are not
independent of each other.
"""

from __future__ import annotations

import itertools
import math
import statistics

from restore_lab.tables.measured import Measured, Number, by_image
from restore_lab.tables.spec import Claim

FACTOR = 1.96 + 0.84


def powers(table: Measured) -> list[str]:
    """A line for each claim whose two published numbers are of the metric that is measured here."""
    return [line for claim in table.spec.claims if (line := _power(table, claim))]


def resolvable(deviation: float, n: int) -> float:
    """The smallest mean difference that n images resolve."""
    return FACTOR * deviation / math.sqrt(n)


def needed(deviation: float, difference: float) -> int:
    """How many images resolve a mean difference."""
    return math.ceil((FACTOR * deviation / difference) ** 2)


def _power(table: Measured, claim: Claim) -> str:
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
    deviation, n = max(spreads)
    found = resolvable(deviation, n)
    if abs(difference) >= found:
        return f"{says}; n = {n} images resolve {found:.3g}: enough"
    more = f", {needed(deviation, difference)} images would" if difference else ""
    return f"{says}; n = {n} images resolve {found:.3g}: NOT enough{more}"


def _spread(a: Number, b: Number) -> tuple[float, int] | None:
    """Deviation of the paired differences over images, and how many; None for fewer than three."""
    keys, values_NI = by_image([a, b])
    return (statistics.stdev(values_NI[0] - values_NI[1]), len(keys)) if len(keys) >= 3 else None
