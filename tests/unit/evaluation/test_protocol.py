"""Protocols and columns: cropping, conversion, rounding, and what may share a column."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from restore_lab.config.build import build
from restore_lab.evaluation.protocol import ColumnLabel, Protocol, luma
from tests.helpers.configs import composed

COLUMN = ColumnLabel(metric="psnr", weights="", colour="rgb", border=0, size="64x64", rounding="8bit", count=8)


def test_luma_is_bt601_in_studio_range() -> None:
    corners = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).view(5, 3, 1, 1)
    # MATLAB: rgb2ycbcr(uint8) of black, white, red, green, blue before rounding
    expected = torch.tensor([16.0, 235.0, 81.481, 144.553, 40.966])
    torch.testing.assert_close(luma(corners).flatten() * 255, expected, atol=1e-4, rtol=0)


def test_rounding_gives_the_levels_of_a_saved_file() -> None:
    image = torch.tensor([-0.2, 0.4 / 255, 0.6 / 255, 100.49 / 255, 1.3]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    got = Protocol(rounding="8bit").round(image)[0, 0, 0] * 255
    torch.testing.assert_close(got, torch.tensor([0.0, 0, 1, 100, 255]))
    raw = Protocol(rounding="none").round(image)[0, 0, 0] * 255
    torch.testing.assert_close(raw, torch.tensor([0.0, 0.4, 0.6, 100.49, 255]))


def test_the_border_is_cropped_from_each_side() -> None:
    image = torch.arange(64.0).view(1, 1, 8, 8).expand(1, 3, 8, 8) / 64
    cut = Protocol(border=2).pixels(image)
    assert cut.shape == (1, 3, 4, 4)
    assert torch.equal(cut, image[..., 2:6, 2:6])
    assert Protocol(border=3, colour="y").pixels(image).shape == (1, 1, 2, 2)
    with pytest.raises(ValueError, match="border 4 leaves nothing of a 8x8 image"):
        Protocol(border=4).pixels(image)


@pytest.mark.parametrize("wrong", [{"colour": "lab"}, {"rounding": "16bit"}, {"border": -1}])
def test_bad_protocols_are_named(wrong: dict) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        Protocol(**wrong)


@pytest.mark.parametrize(
    "change",
    [
        {"metric": "ssim"},
        {"weights": "v2"},
        {"colour": "y"},
        {"border": 4},
        {"size": "mixed"},
        {"rounding": "none"},
        {"count": 9},
    ],
)
def test_any_difference_makes_another_column(change: dict) -> None:
    assert replace(COLUMN).id == COLUMN.id
    assert replace(COLUMN, **change).id != COLUMN.id


def test_column_id_is_stable_across_versions() -> None:
    """Records on disk hold it: a change here would split every table."""
    assert COLUMN.id == "00906b604b0f"
    assert COLUMN.text() == "psnr: RGB, 64x64, 8-bit, n=8"


def test_size_and_crop_come_before_the_metrics_and_into_the_label() -> None:
    image = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    small = Protocol(resize=12, rounding="none").prepare(image)
    assert small.shape == (1, 3, 12, 16)
    assert small.mean() == pytest.approx(float(image.mean()), abs=0.01)
    assert torch.equal(Protocol(resize=24, rounding="none").prepare(image), image)
    cut = Protocol(crop=8, rounding="none").prepare(image)
    assert torch.equal(cut, image[..., 8:16, 12:20])
    with pytest.raises(ValueError, match="crop 40 is larger than a 32x24 image"):
        Protocol(crop=40).prepare(image)
    scaled = replace(COLUMN, resize=64, crop=64)
    assert scaled.id != COLUMN.id and "64x64 scaled to 64 from the middle" in scaled.text()


def test_a_label_without_size_keeps_its_id() -> None:
    """Records measured before sizes could be said stay readable."""
    assert COLUMN.id == "00906b604b0f"


PRESETS = {
    "spire": ("rgb", None, 512, None),
    "supir": ("rgb", None, 1024, None),
    "diff_restorer": ("rgb", None, None, 512),
    "instantir_512": ("rgb", None, 512, 1024),
    "instantir_1024": ("rgb", 512, 1024, None),
    "dra": ("rgb", None, 1024, None),
    "osediff": ("y", None, None, None),
    "faithdiff": ("rgb", None, None, None),
    "invsr": ("y", None, None, None),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_how_images_reach_the_metrics(name) -> None:
    cfg = composed("evaluate", f"protocol={name}")
    protocol = build(cfg.protocol)
    assert (protocol.colour, protocol.crop, cfg.eval_crop, cfg.work_size) == PRESETS[name]
    typed = composed("evaluate", f"protocol={name}", "eval_crop=64", "metrics=fidelity")
    assert typed.eval_crop == 64 and list(typed.metrics.metrics) == ["psnr", "ssim"]  # what is typed wins


def test_one_name_measured_by_two_projects_has_two_labels() -> None:
    """maniqa of OSEDiff is PIPAL's, of InvSR KonIQ's; clipiqa of FaithDiff another network."""
    sources = {}
    for name in ("osediff", "faithdiff", "invsr"):
        cfg = composed("evaluate", f"protocol={name}")
        for metric in ("maniqa", "clipiqa"):
            measured = build(cfg.metrics.metrics[metric])
            assert measured.id == metric
            sources[name, metric] = (measured.name, measured.source())
    assert sources["osediff", "maniqa"][0] == sources["faithdiff", "maniqa"][0] == "maniqa-pipal"
    assert sources["invsr", "maniqa"][0] == "maniqa"
    assert sources["osediff", "maniqa"][1] != sources["invsr", "maniqa"][1]
    assert sources["faithdiff", "clipiqa"][0] == "clipiqa+_vitL14_512" and sources["osediff", "clipiqa"][0] == "clipiqa"
