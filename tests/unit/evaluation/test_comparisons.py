"""Paired differences between rows of a record, and rank correlations along ordered rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from restore_lab.evaluation.comparisons import order_correlation, report_comparisons
from restore_lab.evaluation.records import DECODED_LQ, ImageValue, Results
from restore_lab.evaluation.statistics import difference


def record(**rows: list[float]) -> Results:
    images = [
        ImageValue(row=row, key=f"image {i}", metric="psnr", value=value, caption="", instruction="", recipe="")
        for row, values in rows.items()
        for i, value in enumerate(values)
    ]
    return Results(cells=(), images=tuple(images), notes=())


def test_rank_correlation_of_means_and_of_images() -> None:
    rows = {"1": [1.0, 3.0, 0.0], "2": [2.0, 2.0, 0.0], "3": [4.0, 1.0, 0.0], "4": [3.0, 0.0, 0.0]}
    means, each = order_correlation(record(**rows), rows=list(rows), metric="psnr")
    by_hand = [spearmanr([1, 2, 3, 4], [rows[name][i] for name in rows]).statistic for i in range(2)]
    assert each == pytest.approx(np.mean(by_hand))  # the third image is flat and has no order
    assert means == pytest.approx(spearmanr([1, 2, 3, 4], [sum(row) for row in rows.values()]).statistic)
    with pytest.raises(ValueError, match="at least 3 rows"):
        order_correlation(record(**rows), rows=["1", "2"], metric="psnr")


def test_the_report_names_codec_first_variant_and_order() -> None:
    rows = {DECODED_LQ: [1.0, 2.0], "right": [2.0, 3.0], "wrong": [1.5, 2.5], "none": [1.0, 2.0]}
    found = record(**rows)
    lines = report_comparisons(
        found, prompt_sets=["right", "wrong", "none"], ordered=["none", "wrong", "right"], settings={}
    )
    assert [line.split(" = ")[0] for line in lines[:3]] == [
        "psnr: right - D(E(LQ))",
        "psnr: wrong - right",
        "psnr: none - right",
    ]
    assert not any("*" in line or "[" in line for line in lines[:3])
    assert lines[0] == "psnr: right - D(E(LQ)) = +1, n = 2, no interval below 6 images"
    assert lines[3] == "psnr: rank correlation along none .. right: means +1.000, images +1.000"


def test_a_star_needs_enough_images_and_an_interval_that_leaves_out_zero() -> None:
    """The line is the table's interval; squares of one photograph are one image."""
    noise = np.random.default_rng(0).normal(0, 1, 24)
    rows = {DECODED_LQ: list(np.linspace(20, 30, 24)), "own": list(np.linspace(20, 30, 24) + 1 + noise)}
    results = record(**rows)
    by_key = [{(0, i.key): i.value for i in results.images if i.row == row and i.value is not None} for row in rows]
    lines = report_comparisons(results, prompt_sets=["own"], ordered=[], settings={})
    assert lines[0] == f"psnr: own - D(E(LQ)) = {difference(by_key[1], by_key[0])}  *"
    assert lines[1].startswith("[95 percent] over images")
    cut = Results(cells=(), images=tuple(replace(i, key=f"cat_{i.key.split()[1]}") for i in results.images))
    assert "*" not in report_comparisons(cut, prompt_sets=["own"], ordered=[], settings={"eval_crops": 24})[0]
