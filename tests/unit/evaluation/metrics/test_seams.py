"""The seam metric in closed form: 0 for a ramp, the height for a jump at the edges."""

from __future__ import annotations

import pytest
import torch

from restore_lab.evaluation.metrics.seams import Seams, edges, seams
from restore_lab.samplers.tiling import starts


def ramp(height: int, width: int, *, slope: float = 1e-3) -> torch.Tensor:
    rows = slope * torch.arange(height, dtype=torch.float64)[:, None]
    return (rows + slope * torch.arange(width, dtype=torch.float64)).expand(2, 3, height, width).clone()


@pytest.mark.parametrize("reach", [1, 4])
def test_a_ramp_has_no_seams_and_a_jump_scores_its_height(reach) -> None:
    image, slope, jump = ramp(120, 200), 1e-3, 0.01
    assert seams(image, rows=[60], columns=[50, 150], reach=reach).tolist() == pytest.approx([1.0, 1.0])
    image[1, :, 60:] += jump
    image[1, :, :, 50:] += jump
    image[1, :, :, 150:] += jump
    found = seams(image, rows=[60], columns=[50, 150], reach=reach)
    assert found.tolist() == pytest.approx([1.0, (1 + jump / (slope * reach)) ** 2])
    elsewhere = seams(image, rows=[90], columns=[100], reach=reach)  # a jump inside a tile is no seam
    assert elsewhere[1] <= 1.0 + 1e-9


def test_noise_has_no_seams() -> None:
    noise = torch.rand(4, 3, 400, 400, generator=torch.Generator().manual_seed(0))
    assert seams(noise, rows=[100, 200, 300], columns=[150, 250], reach=4).tolist() == pytest.approx(
        [1.0] * 4, abs=0.15
    )


def test_the_seam_metric_uses_the_tiles_edges() -> None:
    assert starts(100, 40, 10) == [0, 30, 60] and edges(100, tile=40, overlap=10) == [30, 40, 60, 70]
    metric = Seams(tile=40, overlap=8, compression=4, multiple=8)
    image = ramp(40, 97)  # 97 is padded to 104: 26 latents, tiles of 10 by 2: 0, 8, 16
    image[..., 64:] += 0.01
    image[..., 72:] += 0.01
    assert metric(image, None, None).tolist() == pytest.approx(
        seams(image, rows=[], columns=[32, 40, 64, 72], reach=4).tolist()
    )
    assert metric(image, None, None)[0] > 2
    assert metric(ramp(40, 40), None, None).isnan().all()
