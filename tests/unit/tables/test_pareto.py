"""Fronts and hypervolumes against closed forms, and the pictures of tables."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import yaml

from restore_lab.evaluation.protocol import ColumnLabel
from restore_lab.tables.figures.figure import draw_figure, figure_findings
from restore_lab.tables.file import read_spec
from restore_lab.tables.numbers import Number, TableNumbers
from restore_lab.tables.pareto import bootstrap, hypervolume, pareto
from restore_lab.tables.spec import Spec


def test_the_front_of_a_staircase() -> None:
    """A step of a staircase stays, what lies under one goes; of equal points both stay; less of both always goes."""
    points = np.array([[0, 3], [1, 2], [2, 1], [3, 0], [1, 1], [0, 2.5], [2, 1], [-1, 3]], dtype=float)
    assert pareto(points).tolist() == [True, True, True, True, False, False, True, False]


def test_the_front_equals_its_definition() -> None:
    """Against the definition, point by point, on a grid with many ties."""
    points = np.random.default_rng(0).integers(0, 6, size=(60, 2)).astype(float)
    slow = [not any((q >= p).all() and (q > p).any() for q in points) for p in points]
    assert pareto(points).tolist() == slow and 0 < sum(slow) < 60


def test_hypervolumes_equal_their_closed_forms() -> None:
    """A point is a rectangle, a staircase of n unit steps n (n + 1) / 2; what is dominated or below adds nothing."""
    zero = np.zeros(2)
    assert hypervolume(np.array([[2.0, 3.0]]), np.array([1.0, -1.0])) == 4.0
    stairs = np.array([[i, 5 - i + 1] for i in range(1, 6)], dtype=float)
    assert hypervolume(stairs, zero) == 15.0
    assert hypervolume(np.vstack([stairs, [[1, 1], [2, 3], [9, -1], [-1, 9], [0, 4]]]), zero) == 15.0
    assert hypervolume(np.zeros((0, 2)), zero) == 0.0


def test_hypervolume_counts_the_dominated_cells() -> None:
    """On integers the area is the number of unit cells under some point, whatever the order of the points."""
    points = np.random.default_rng(1).integers(-3, 12, size=(25, 2)).astype(float)
    cells = sum(
        any(x < p[0] and y < p[1] for p in points) for x, y in itertools.product(range(12), range(12))
    )  # a cell is [x, x + 1] by [y, y + 1]
    assert hypervolume(points, np.zeros(2)) == cells == hypervolume(points[::-1], np.zeros(2))


def test_membership_is_paired_over_images() -> None:
    """A point that is better by the same on every image is on the front in every draw, however much images differ; one
    that wins on half of the images by as much as it loses on the rest, about half of the time."""
    rng = np.random.default_rng(2)
    base = rng.normal(20, 5, size=(40, 1)) * np.ones(2)
    coin = base + np.where(np.arange(40) % 2, 1.0, -1.0)[:, None]
    sure = bootstrap(np.stack([base, base + 0.01, base - 1, coin])[:, None], np.zeros(2))
    assert sure.share_N[1] + sure.share_N[3] == pytest.approx(1.0) and 0.3 < sure.share_N[3] < 0.7
    assert sure.share_N[0] == 0.0 and sure.share_N[2] == 0.0
    assert sure.low < hypervolume((base + 0.01).mean(axis=0)[None], np.zeros(2)) < sure.high


def spec(tmp_path: Path, **changed) -> Spec:
    columns = {
        "PSNR": {"metric": "psnr", "better": "more"},
        "CLIPIQA": {"metric": "clipiqa", "tiny": {"metric": "piqe", "better": "less"}, "better": "more"},
    }
    node = {"title": "toy", "source": {"paper": "Toy"}, "columns": columns, **changed}
    file = tmp_path / "experiment" / "toy" / "one.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump({"table": node}, sort_keys=False))
    return read_spec("toy/one", [tmp_path], scale="tiny")


def number(mean: float, *, wobble: float = 0.0) -> Number:
    values = mean + wobble * np.cos(np.arange(8) * np.pi)
    label = ColumnLabel(metric="m", weights="", colour="rgb", border=0, size="8x8", rounding="8bit", count=8)
    images = {(0, str(i)): float(value) for i, value in enumerate(values)}
    return Number(mean=mean, spread=None, n=8, seeds=1, label=label, code=(), images=images)


FRONTIER = {"kind": "frontier", "fidelity": "PSNR", "quality": "CLIPIQA", "knob": "Knob", "value": "Value",
            "reference": {"tiny": [10, 100], "full": [10, 0]}}  # fmt: skip


def frontier(tmp_path: Path) -> TableNumbers:
    rows = {
        "a": {"title": "A", "labels": {"Knob": "default"}},
        "a1": {"title": "A", "labels": {"Knob": "steps", "Value": 5}},
        "b": {"title": "B", "labels": {"Knob": "default"}},
        "late": {"title": "B", "labels": {"Knob": "steps", "Value": 9}},
    }
    table = spec(tmp_path, rows=rows, figure=FRONTIER)
    at = {"a": (20, 60), "a1": (22, 70), "b": (19, 65), "LQ": (21, 63)}
    numbers = {
        (row, "main", column): number(value)
        for row, pair in at.items()
        for column, value in zip(("PSNR", "CLIPIQA"), pair, strict=True)
    }
    return TableNumbers(spec=table, numbers=numbers, problems=[], references=["LQ"])


def test_a_frontier_has_its_findings(tmp_path) -> None:
    """Less of the stand-in is better; a row without scores is left out; each method has a front, as have all."""
    said = figure_findings(frontier(tmp_path))
    assert "psnr (more is better) and piqe (less is better)" in said[0] and "10 and 100" in said[0]
    whole = 10 * 40 + 2 * 30  # the default's rectangle and what five steps add to the right of it
    assert said[1:] == [
        f"all: hypervolume {whole} [{whole}, {whole}]; front of 3 points: A steps 5 (22, 70, 100 %), "
        "A default (20, 60, 100 %)",
        f"A: hypervolume {whole} [{whole}, {whole}]; front of 2 points: steps 5 (22, 70, 100 %), "
        "default (20, 60, 100 %)",
        "B: hypervolume 315 [315, 315]; front of 1 point: default (19, 65, 100 %)",
    ]


def surface(tmp_path: Path) -> TableNumbers:
    """PSNR falls with the distance of what is said from what is true; the second metric follows what is said."""
    strengths = {"1": 1.0, "2": 2.0, "3": 3.0}
    table = spec(
        tmp_path,
        rows={f"s{k}": {} for k in strengths},
        conditions={f"t{k}": {} for k in strengths},
        figure={
            "kind": "surface", "best": "PSNR", "columns": ["PSNR", "CLIPIQA"],
            "instructed": {f"s{k}": v for k, v in strengths.items()},
            "actual": {f"t{k}": v for k, v in reversed(strengths.items())},
        },
    )  # fmt: skip
    numbers = {}
    for s, t in itertools.product(strengths, strengths):
        numbers[f"s{s}", f"t{t}", "PSNR"] = number(30 - abs(strengths[s] - strengths[t]), wobble=0.1)
        numbers[f"s{s}", f"t{t}", "CLIPIQA"] = number(strengths[s])
    return TableNumbers(spec=table, numbers=numbers, problems=[], references=[])


def test_a_surface_has_its_findings(tmp_path) -> None:
    said = figure_findings(surface(tmp_path))
    assert said[0] == ("true 1: instructed 1 is best (psnr 30, the worst has 28; best in 100 % of bootstrap draws over "
                       "seeds and images)")  # fmt: skip
    assert [line[: line.index("(")] for line in said[1:3]] == [
        "true 2: instructed 2 is best ", "true 3: instructed 3 is best ",
    ]  # fmt: skip
    assert "+1.00 by the means, +1.00 in the mean over images" in said[3]
    assert said[4] == "piqe against the instruction, rank correlation: +1.00 at 1, +1.00 at 2, +1.00 at 3"


@pytest.mark.parametrize("kind", [frontier, surface])
def test_a_picture_is_drawn(kind, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    from skimage.io import imread

    file = tmp_path / "picture.png"
    file.write_bytes(draw_figure(kind(tmp_path)) or b"")
    drawn = imread(file)
    assert min(drawn.shape[:2]) > 300 and len(np.unique(drawn[..., :3].reshape(-1, 3), axis=0)) > 20


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"kind": "pie"}, "kind='pie' is one of frontier, surface"),
        ({"quality": "FID"}, "no column 'FID'"),
        ({"colour": "red"}, "no setting 'colour' in it; there are: fidelity, quality, knob, value, reference"),
        ({"reference": [10, 0]}, r"reference=\[10, 0\]: expected a mapping"),
        ({"reference": {"tiny": 3}}, r"reference.tiny=3: expected a list \(2 of a number\)"),
        ({"reference": {"full": [10, 0]}}, "reference has no tiny; give fidelity and quality"),
    ],
)
def test_a_mistake_in_a_figure_is_refused_in_one_line(changed, says, tmp_path) -> None:
    with pytest.raises(ValueError, match=f"table toy/one, figure: {says}"):
        spec(tmp_path, rows={"a": {}}, figure={**FRONTIER, **changed})
