"""KID: its value over pairs, its bias, and its interval."""

from __future__ import annotations

import itertools

import pytest
import torch

from restore_lab.evaluation.metrics.kernel_distance import SCALE, kernel_distance
from restore_lab.evaluation.protocol import Protocol, SetMetric
from restore_lab.evaluation.suite import MetricSuite
from restore_lab.random import generator


def draws(n: int, name: str, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, 6, generator=generator(n, name), dtype=torch.float64) + shift


def test_kid_is_the_mean_over_pairs() -> None:
    a, b = draws(5, "a"), draws(5, "b", 0.5)

    def kernel(x: torch.Tensor, y: torch.Tensor) -> float:
        return (float(x @ y) / 6 + 1) ** 3

    pairs = list(itertools.permutations(range(5), 2))
    within = sum(kernel(s[i], s[j]) for s in (a, b) for i, j in pairs) / 20
    across = sum(kernel(a[i], b[j]) for i, j in pairs) / 20
    assert kernel_distance(a, b).value == pytest.approx(SCALE * (within - 2 * across), rel=1e-9)


def test_kid_does_not_depend_on_the_number_of_images() -> None:
    """Means over many small sets and over large ones agree, where a Frechet distance falls; zero for one source."""
    small = [kernel_distance(draws(8, f"a{i}"), draws(8, f"b{i}", 0.4), draws=2).value for i in range(400)]
    large = [kernel_distance(draws(200, f"a{i}"), draws(200, f"b{i}", 0.4), draws=2).value for i in range(10)]
    same = [kernel_distance(draws(8, f"a{i}"), draws(8, f"c{i}"), draws=2).value for i in range(400)]
    spread = torch.tensor(small).std() / 20
    assert abs(sum(small) / 400 - sum(large) / 10) < 4 * spread
    assert abs(sum(same) / 400) < 4 * torch.tensor(same).std() / 20


def test_the_interval_holds_the_value_and_tells_sets_apart() -> None:
    near, far = kernel_distance(draws(60, "a"), draws(60, "b")), kernel_distance(draws(60, "a"), draws(60, "b", 1.0))
    assert near.interval[0] < 0 < near.interval[1]
    assert 0 < far.interval[0] < far.value < far.interval[1]
    assert kernel_distance(draws(60, "a"), draws(60, "b")) == near
    assert kernel_distance(draws(60, "a"), draws(60, "a")).value == pytest.approx(0, abs=1e-9)


def test_the_interval_lies_about_the_value_where_each_image_is_like_its_own_original() -> None:
    """Restored images that differ from their originals a little, which differ among each other a lot."""
    original = draws(50, "a") * 3
    found = kernel_distance(original + draws(50, "b", 0.5) * 0.3, original)
    low, high = found.interval
    assert low < found.value < high
    assert abs((low + high) / 2 - found.value) < (high - low) / 4


@pytest.mark.parametrize("shapes", [((1, 3), (1, 3)), ((4, 3), (5, 3)), ((4, 3), (4, 2))])
def test_sets_that_cannot_be_compared_are_named(shapes) -> None:
    with pytest.raises(ValueError, match=r"equally many images, at least 2"):
        kernel_distance(*(torch.zeros(shape) for shape in shapes))


class Means(SetMetric):
    """A distance on the mean colours."""

    id = "tiny_fd"
    higher_is_better = False

    def features(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        return image_BCHW.mean(dim=(2, 3)).double()

    def distance(self, restored_ND: torch.Tensor, reference_ND: torch.Tensor) -> float:
        return float((restored_ND.mean(0) - reference_ND.mean(0)).square().sum())


@pytest.mark.parametrize(("count", "columns"), [(12, ["tiny_fd", "tiny_kd"]), (1000, ["tiny_fd"])])
def test_kid_is_added_only_to_a_frechet_distance_of_few_images(count, columns) -> None:
    suite = MetricSuite(metrics={"one": Means()}, protocol=Protocol())
    images = torch.rand(count, 3, 2, 2, generator=generator(3))
    suite.update("row", images, keys=[str(i) for i in range(count)], reference_BCHW=images.flip(-1))
    cells = suite.compute().cells
    assert [cell.metric for cell in cells] == columns
    assert {cell.n for cell in cells} == {count}
    assert [cell.interval is not None for cell in cells] == [column == "tiny_kd" for column in columns]
