"""The 95 percent interval of a difference of two rows, used for every mark, claim, "*" and bracket.

The differences d_si of seed s (a training, a draw of noise) and image i are modelled as mean + a_s + b_i + e_si, a
crossed layout: all seeds have the same images. The interval has the percentiles of the sum of two independent errors:

- images: bootstrap-t of the images' means over seeds (Efron and Tibshirani 1993, section 12.5). Percentile intervals
  are too short for few images, and for skewed metrics;
- seeds: Student's t with S - 1 degrees of freedom times the root of their variance component over S, which is
  (MS_seeds - MS_rest) / I, at least 0 (Searle, Casella and McCulloch 1992, chapter 4). A bootstrap over three seeds is
  far too short.

The sum of the errors gives a generalised interval (Weerahandi 1993). With one seed the second error is unknown, and the
interval is over images only. Crops of one photograph count as one image, since they are not independent.
Shapes: N rows, S seeds, I images, T tables, D draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from restore_lab.random import rng

MIN_IMAGES = 6  # for an interval and marks
MIN_SEEDS = 3  # for claims about trained rows
DRAWS = 2000
Values = NDArray[np.float64]
ByImage = Mapping[tuple[int, str], float]  # value by (seed, key)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One row minus another over their common images and seeds.

    Attributes:
        mean: over images and seeds.
        low, high: the 95 percent interval; None below `MIN_IMAGES` photographs.
        n: number of images, counting each crop of a photograph.
        photographs: number of photographs; `n` for whole images.
        seeds: number of seeds.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    photographs: int
    seeds: int

    @property
    def clear(self) -> bool:
        """Whether there is an interval without zero."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    def __str__(self) -> str:
        """ "+0.42 [+0.31, +0.54], n = 56 of 14 photographs" """
        count = f"n = {self.n}" + (f" of {self.photographs} photographs" if self.photographs < self.n else "")
        if self.low is None or self.high is None:
            return f"{self.mean:+.4g}, {count}, no interval below {MIN_IMAGES} images"
        return f"{self.mean:+.4g} [{self.low:+.4g}, {self.high:+.4g}], {count}"


@dataclass(frozen=True, kw_only=True)
class CommonGrid:
    """The common values of some rows: the seeds that all have, and the images that all have for each of these seeds."""

    seeds: Sequence[int]
    keys: Sequence[str]
    values_NSI: Values


def difference(a: ByImage, b: ByImage, *, photographs: Mapping[str, str] | None = None) -> Difference | None:
    """a minus b; None without common images.

    Args:
        a, b: values by seed and image.
        photographs: the photograph of each image by key; an image without entry is its own.
    """
    found = common_grid([a, b])
    if not found.keys:
        return None
    values_SI = by_photograph(found.values_NSI[0] - found.values_NSI[1], found.keys, photographs)
    mean, low, high = float(values_SI.mean()), None, None
    if values_SI.shape[1] >= MIN_IMAGES:
        low, high = (float(end[0]) for end in intervals(values_SI[None]))
    count = {"n": len(found.keys), "photographs": values_SI.shape[1], "seeds": len(found.seeds)}
    return Difference(mean=mean, low=low, high=high, **count)


def common_grid(rows: Sequence[ByImage]) -> CommonGrid:
    """The complete grid of seeds and images that all rows have."""
    both = set.intersection(*(set(row) for row in rows))
    seeds = sorted({seed for seed, _ in both})
    keys = sorted(key for key in {key for _, key in both} if all((seed, key) in both for seed in seeds))
    values = [[[row[seed, key] for key in keys] for seed in seeds] for row in rows]
    return CommonGrid(seeds=seeds, keys=keys, values_NSI=np.array(values, dtype=np.float64))


def by_photograph(values_SI: Values, keys: Sequence[str], photographs: Mapping[str, str] | None) -> Values:
    """One value per photograph, such that their mean is the mean over images for any number of crops each.

    The last axis is that of images.
    """
    names = [(photographs or {}).get(key, key) for key in keys]
    found, place_I = np.unique(names, return_inverse=True)
    if len(found) == len(keys):
        return values_SI
    mean = values_SI.mean(axis=tuple(range(values_SI.ndim))[-2:], keepdims=True)
    member_IU = np.eye(len(found))[place_I]
    return mean + (values_SI - mean) @ member_IU * (len(found) / len(keys))


def photograph(key: str, settings: Mapping[str, object]) -> str:
    """The photograph of a crop, by the record's settings: "astronaut" of "astronaut_2"."""
    whole, _, number = key.rpartition("_")
    is_crop = whole and number.isdecimal() and int(number) < _crops(settings)
    return whole if is_crop else key


def _crops(settings: object) -> int:
    """The maximum number of crops per image: `eval_crops`, or `crops` of a source."""
    if not isinstance(settings, Mapping):
        return 0
    own = [int(settings.get(name) or 0) for name in ("eval_crops", "crops")]
    nodes = [settings.get("eval_data"), *(settings.get("sources") or {}).values(), settings.get("source")]
    return max(own + [_crops(node) for node in nodes])


def intervals(values_TSI: Values, *, draws: int = DRAWS) -> tuple[Values, Values]:
    """The ends_T, low and high, of the 95 percent intervals of the means of tables of differences."""
    errors_TD = _image_errors(values_TSI, draws)
    if values_TSI.shape[1] > 1:
        seeds_TD = _seed_errors(values_TSI, draws)
        errors_TD = np.concatenate([errors_TD + seeds_TD, errors_TD - seeds_TD], axis=1)
    mean_T = values_TSI.mean(axis=(1, 2))
    percentile = np.nanpercentile if np.isnan(errors_TD).any() else np.percentile  # nanpercentile is slow
    below_T, above_T = percentile(errors_TD, [2.5, 97.5], axis=1)
    return mean_T - above_T, mean_T - below_T


def _image_errors(values_TSI: Values, draws: int) -> Values:
    """Errors_TD of the mean from the sampling of images; NaN for draws without spread."""
    images_TI = values_TSI.mean(axis=1)
    n = images_TI.shape[1]
    images_TI = images_TI - images_TI.mean(axis=1, keepdims=True)
    error_T1 = images_TI.std(axis=1, ddof=1, keepdims=True) / n**0.5
    counts_ID = np.stack([np.bincount(pick, minlength=n) for pick in rng("images", n).integers(n, size=(draws, n))]).T
    mean_TD = images_TI @ counts_ID / n
    error_TD = np.sqrt(np.maximum(images_TI**2 @ counts_ID / n - mean_TD**2, 0) / (n - 1))
    pivot_TD = np.divide(mean_TD, error_TD, out=np.full_like(mean_TD, np.nan), where=error_TD > 1e-6 * error_T1)
    return np.where(error_T1 > 0, error_T1 * pivot_TD, 0.0)


def _seed_errors(values_TSI: Values, draws: int) -> Values:
    """Errors_TD of the mean from the sampling of seeds: quantiles of Student's t on an even grid, shuffled."""
    from scipy.stats import t as student

    parts = components(values_TSI)
    assert parts.seeds is not None
    count = values_TSI.shape[1]
    grid_D = student.ppf((np.arange(draws) + 0.5) / draws, count - 1)
    return np.sqrt(parts.seeds / count)[:, None] * rng("seeds", count).permutation(grid_D)


@dataclass(frozen=True, kw_only=True)
class Components:
    """Variance components_T of seeds, images and residual; with one seed `images` includes the residual."""

    seeds: Values | None
    images: Values
    rest: Values


def components(values_TSI: Values) -> Components:
    """The variance components of a crossed layout, by analysis of variance, clamped at 0."""
    _, seeds, images = values_TSI.shape
    seed_TS1, image_T1I = values_TSI.mean(axis=2, keepdims=True), values_TSI.mean(axis=1, keepdims=True)
    image_T = image_T1I[:, 0].var(axis=1, ddof=1)
    if seeds == 1:
        return Components(seeds=None, images=image_T, rest=np.zeros_like(image_T))
    residual_TSI = values_TSI - seed_TS1 - image_T1I + values_TSI.mean(axis=(1, 2), keepdims=True)
    rest_T = (residual_TSI**2).sum(axis=(1, 2)) / ((seeds - 1) * (images - 1))
    seed_T = seed_TS1[:, :, 0].var(axis=1, ddof=1)
    return Components(
        seeds=np.maximum(seed_T - rest_T / images, 0), images=np.maximum(image_T - rest_T / seeds, 0), rest=rest_T
    )


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's rank correlation."""
    from scipy.stats import spearmanr

    found: Any = spearmanr(first, second)
    return float(found.statistic)


def redraw(values_NSI: Values, *, draws: int = 1000) -> Values:
    """Means_DN over resampled seeds and images, the same for every row (the pigeonhole bootstrap, Owen 2007).

    For statistics without a closed form: the points of a Pareto front, the best row.
    """
    _, seeds, images = values_NSI.shape
    draw = rng("redraw", seeds, images)
    picks = ((draw.integers(seeds, size=(seeds, 1)), draw.integers(images, size=images)) for _ in range(draws))
    return np.stack([values_NSI[:, s, i].mean(axis=(1, 2)) for s, i in picks])
