"""The interval of a difference: its coverage over many synthetic tables, closed forms, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student

from restore_lab.evaluation.statistics import (
    ByImage,
    by_photograph,
    components,
    difference,
    intervals,
    photograph,
    redraw,
)

TABLES = 2000  # of one setting: the standard error of a coverage of 95 percent is 0.5


def metric(kind: str, draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of mean 0 and variance 1, some of them skewed as metrics are."""
    if kind == "normal":
        return draw.standard_normal(shape)
    if kind == "exponential":
        return draw.exponential(size=shape) - 1
    values = draw.lognormal(0, 0.75, size=shape)
    return (values - np.exp(0.75**2 / 2)) / np.sqrt((np.exp(0.75**2) - 1) * np.exp(0.75**2))


@pytest.mark.parametrize("kind", ["normal", "exponential", "lognormal"])
@pytest.mark.parametrize(
    ("seeds", "images", "between"),
    [
        (1, 14, 0.0),
        (1, 56, 0.0),
        (3, 6, 0.3),
        (3, 14, 0.0),
        (3, 14, 0.1),
        (3, 14, 1.0),
        (3, 14, 10.0),
        (3, 56, 0.1),
        (3, 56, 1.0),
        (5, 14, 0.3),
        (10, 30, 0.3),
    ],
)
def test_intervals_cover_the_truth_in_95_of_100(seeds: int, images: int, between: float, kind: str) -> None:
    """The truth is the mean over all trainings and images; with one seed, that of this training over all images.

    `between`: the deviation of seeds over that of images, which is 1 as that of what is left is.
    """
    draw = np.random.default_rng(seeds * images)
    of_seed = between * draw.standard_normal((TABLES, seeds, 1))
    values = of_seed + metric(kind, draw, (TABLES, 1, images))
    values = values + (draw.standard_normal((TABLES, seeds, images)) if seeds > 1 else 0)
    truth = of_seed[:, 0, 0] if seeds == 1 else 0.0
    low, high = intervals(values, draws=300)
    assert 92 < 100 * np.mean((low <= truth) & (truth <= high)) < 98


def test_a_bootstrap_over_the_images_alone_does_not_cover_trainings() -> None:
    """What was here before: of tables whose trainings differ as much as images do, it held the truth in a fifth."""
    draw = np.random.default_rng(0)
    values = draw.standard_normal((TABLES, 3, 1)) + draw.standard_normal((TABLES, 3, 56))
    low, high = intervals(values.mean(axis=1, keepdims=True), draws=300)
    assert np.mean((low <= 0) & (high >= 0)) < 0.25
    low, high = intervals(values, draws=300)
    assert 0.92 < np.mean((low <= 0) & (high >= 0)) < 0.98


def test_with_only_seed_variance_it_is_students_interval() -> None:
    """All images alike: three values, two degrees of freedom."""
    values_TSI = np.repeat(np.array([[0.1, 0.5, 0.9]]), 8, axis=0).T[None]
    half = student.ppf(0.975, 2) * 0.4 / 3**0.5
    low, high = intervals(values_TSI)
    assert (low[0], high[0]) == pytest.approx((0.5 - half, 0.5 + half), rel=0.02)


def test_for_many_images_it_is_the_normal_interval_and_the_mirror_of_its_reverse() -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(0.3, 1.0, (1, 1, 400))
    low, high = intervals(values)
    half = 1.96 * values.std() / 20
    assert (low[0], high[0]) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)
    several = draw.exponential(size=(1, 3, 20)) + draw.standard_normal((1, 3, 1))
    (low, high), (below, above) = intervals(several), intervals(-several)
    assert (low[0], high[0]) == pytest.approx((-above[0], -below[0]))


def test_components_are_those_of_the_analysis_of_variance() -> None:
    """Means over many tables find the variances that the tables were drawn with."""
    draw = np.random.default_rng(0)
    shape = (4000, 4, 9)
    values = 2 * draw.standard_normal((4000, 4, 1)) + 3 * draw.standard_normal((4000, 1, 9))
    found = components(values + draw.standard_normal(shape))
    assert found.seeds is not None
    assert [v.mean() for v in (found.seeds, found.images, found.rest)] == pytest.approx([4, 9, 1], rel=0.05)
    assert components(values[:, :1]).seeds is None


def by_image(values: np.ndarray, *, seed: int = 0) -> ByImage:
    return {(seed, f"cat_{i}"): float(value) for i, value in enumerate(values)}


def test_below_six_images_there_is_no_interval() -> None:
    few, enough = (difference(by_image(np.full(n, 2.0)), by_image(np.ones(n))) for n in (5, 6))
    assert few is not None and (few.mean, few.low, few.high, few.clear) == (1.0, None, None, False)
    assert str(few) == "+1, n = 5, no interval below 6 images"
    assert enough is not None and (enough.low, enough.high, enough.clear) == (1.0, 1.0, True)
    assert str(enough) == "+1 [+1, +1], n = 6"
    assert difference(by_image(np.ones(3)), by_image(np.ones(3), seed=1)) is None


def test_crops_of_one_photograph_count_as_one_image() -> None:
    """Values that are the same on all squares of a photograph say no more than one square of each."""
    own = np.random.default_rng(0).normal(0.5, 1, 7)
    once = difference({(0, str(i)): v for i, v in enumerate(own)}, {(0, str(i)): 0.0 for i in range(7)})
    squares = {(0, f"{i}_{k}"): v for i, v in enumerate(own) for k in range(4)}
    names = {key: photograph(key, {"eval_data": {"crops": 4}}) for _, key in squares}
    four = difference(squares, dict.fromkeys(squares, 0.0), photographs=names)
    assert once is not None and four is not None and (four.n, four.photographs) == (28, 7)
    assert (four.mean, four.low, four.high) == pytest.approx((once.mean, once.low, once.high))


def test_a_photograph_with_more_crops_has_more_weight() -> None:
    values = np.array([[1.0, 2.0, 3.0, 10.0]])
    found = by_photograph(values, ["a_0", "a_1", "a_2", "b_0"], {"a_0": "a", "a_1": "a", "a_2": "a", "b_0": "b"})
    assert found.shape == (1, 2) and found.mean() == pytest.approx(values.mean())


@pytest.mark.parametrize(
    ("key", "settings", "expected"),
    [
        ("astronaut_2", {"eval_data": {"crops": 4}}, "astronaut"),
        ("astronaut_2", {"eval_crops": 6, "eval_data": {}}, "astronaut"),
        ("img_2", {"eval_data": {"folder": "x"}, "eval_crops": None}, "img_2"),
        ("img_17", {"eval_data": {"crops": 4}}, "img_17"),
        ("a/moon_1", {"eval_data": {"sources": {"a": {"source": {"crops": 4}}}}}, "a/moon"),
        ("img_1", {"eval_data": {"crops": 1}}, "img_1"),
    ],
)
def test_a_crops_key_names_its_photograph(key: str, settings: dict, expected: str) -> None:
    assert photograph(key, settings) == expected


def test_the_bootstrap_draws_seeds_and_images() -> None:
    """The spread of the redrawn means is that of both; rows that differ by a constant always differ by it."""
    draw = np.random.default_rng(0)
    values = draw.standard_normal((1, 40, 1)) + draw.standard_normal((1, 1, 40))
    means = redraw(np.concatenate([values, values + 1]), draws=2000)
    assert means[:, 0].std() == pytest.approx((values.mean(axis=2).var() / 40 + values.mean(axis=1).var() / 40) ** 0.5,
                                              rel=0.1)  # fmt: skip
    assert means[:, 1] - means[:, 0] == pytest.approx(1.0)
