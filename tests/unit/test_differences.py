"""Paired differences between rows of a record, and rank correlations along ordered rows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from restore_lab.evaluation.paired import difference, rank_correlation, report
from restore_lab.evaluation.records import DECODED_LQ, ImageValue, Results


def record(**rows: list[float]) -> Results:
    images = [
        ImageValue(row=row, key=f"image {i}", metric="psnr", value=value, caption="", instruction="", recipe="")
        for row, values in rows.items()
        for i, value in enumerate(values)
    ]
    return Results(cells=(), images=tuple(images), notes=())


def test_a_constant_difference_has_no_spread() -> None:
    found = difference(record(a=[20.0, 25.0, 31.0], b=[19.5, 24.5, 30.5]), row="a", baseline="b", metric="psnr")
    assert (found.mean, found.low, found.high, found.n) == (0.5, 0.5, 0.5, 3)
    assert str(found).endswith("*")


def test_the_interval_is_that_of_a_mean() -> None:
    """For many images the bootstrap's percentiles are the normal interval of the mean."""
    draw = np.random.default_rng(0)
    base, delta = draw.normal(20, 5, 400), draw.normal(0.3, 1.0, 400)
    found = difference(record(a=list(base + delta), b=list(base)), row="a", baseline="b", metric="psnr")
    half = 1.96 * delta.std() / 20
    assert found.mean == pytest.approx(delta.mean())
    assert (found.low, found.high) == pytest.approx((delta.mean() - half, delta.mean() + half), abs=0.02)
    nothing = difference(record(a=list(draw.normal(size=50)), b=[0.0] * 50), row="a", baseline="b", metric="psnr")
    assert nothing.low < 0 < nothing.high and not str(nothing).endswith("*")


def test_only_images_that_both_rows_have() -> None:
    assert difference(record(a=[1.0, 2.0, 9.0], b=[0.0, 0.0]), row="a", baseline="b", metric="psnr").n == 2
    with pytest.raises(ValueError, match="a and c share no image with a value of psnr"):
        difference(record(a=[1.0]), row="a", baseline="c", metric="psnr")


def test_rank_correlation_of_means_and_of_images() -> None:
    rows = {"1": [1.0, 3.0, 0.0], "2": [2.0, 2.0, 0.0], "3": [4.0, 1.0, 0.0], "4": [3.0, 0.0, 0.0]}
    means, each = rank_correlation(record(**rows), rows=list(rows), metric="psnr")
    by_hand = [spearmanr([1, 2, 3, 4], [rows[name][i] for name in rows]).statistic for i in range(2)]
    assert each == pytest.approx(np.mean(by_hand))  # the third image is flat and has no order
    assert means == pytest.approx(spearmanr([1, 2, 3, 4], [sum(row) for row in rows.values()]).statistic)
    with pytest.raises(ValueError, match="at least 3 rows"):
        rank_correlation(record(**rows), rows=["1", "2"], metric="psnr")


def test_the_report_names_codec_first_variant_and_order() -> None:
    rows = {DECODED_LQ: [1.0, 2.0], "right": [2.0, 3.0], "wrong": [1.5, 2.5], "none": [1.0, 2.0]}
    lines = report(record(**rows), variants=["right", "wrong", "none"], ordered=["none", "wrong", "right"])
    assert [line.split(" = ")[0] for line in lines[:3]] == [
        "psnr: right - D(E(LQ))",
        "psnr: wrong - right",
        "psnr: none - right",
    ]
    assert lines[3] == "psnr: rank correlation along none .. right: means +1.000, images +1.000"
