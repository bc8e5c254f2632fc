"""The eight degradations: their laws in closed form, what they leave unchanged, their labels and recipes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from restore_lab.degradation.apply import apply_recipe
from restore_lab.degradation.diff_restorer import ORDER, STEP_KINDS, RandomKinds
from restore_lab.degradation.vocabulary import LABELS, labels
from restore_lab.degradation.weather import (
    haze,
    line_kernel,
    low_light,
    motion_blur,
    rain,
    raindrop,
    smooth_field,
    snow,
)
from restore_lab.random import generator
from restore_lab.types import Recipe


def scene(height: int = 48, width: int = 64, *, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 0.2 + 0.6 * torch.rand(3, height, width, generator=draw, dtype=torch.float64)


def test_haze_follows_its_law_and_is_thickest_at_the_top() -> None:
    """I = J t + A (1 - t) with one t for all channels, e^-beta at the deepest; no scattering, no haze."""
    x = scene()
    hazy = haze(x, beta=1.5, airlight=0.9, seed=3)
    t_CHW = (hazy - 0.9) / (x - 0.9)
    torch.testing.assert_close(t_CHW[0], t_CHW[2], atol=1e-9, rtol=1e-9)
    assert math.exp(-1.5) - 1e-9 <= float(t_CHW.min()) and float(t_CHW.max()) <= 1 + 1e-9
    assert float(t_CHW[0, :8].mean()) < float(t_CHW[0, -8:].mean())
    torch.testing.assert_close(haze(x, beta=0.0, airlight=0.9, seed=3), x)


def test_rain_and_snow_only_brighten_and_by_no_more_than_their_opacity() -> None:
    x = scene()
    wet = rain(x, density=0.01, length=0.2, angle=0.3, opacity=0.7, veil=0.0, seed=1)
    white = snow(x, density=0.03, size=0.02, opacity=0.8, seed=1)
    for made, opacity in ((wet, 0.7), (white, 0.8)):
        mask = (made - x) / (1 - x)
        assert float(mask.min()) > -1e-9 and 0.5 * opacity < float(mask.max()) <= opacity + 1e-9
        torch.testing.assert_close(mask[0], mask[1], atol=1e-9, rtol=1e-9)
        assert 0.02 < float((mask[0] > 0.1).double().mean()) < 0.8
    torch.testing.assert_close(snow(x, density=0.0, size=0.02, opacity=0.8, seed=1), x)


def test_streaks_run_along_their_angle() -> None:
    """Of an upright rain the rows differ less from each other than the columns do; turned by a right angle, more."""
    flat = torch.full((3, 64, 64), 0.3, dtype=torch.float64)
    for angle, upright in ((0.0, True), (math.pi / 2, False)):
        wet = rain(flat, density=0.01, length=0.3, angle=angle, opacity=0.9, veil=0.0, seed=2)[0]
        down, across = (float(wet.diff(dim=dim).abs().mean()) for dim in (0, 1))
        assert (down < 0.5 * across) == upright and (across < 0.5 * down) != upright


def test_drops_change_only_the_pixels_they_cover() -> None:
    x = scene(96, 96)
    wet = raindrop(x, count=3, radius=0.1, blur=0.01, seed=4)
    touched = ((wet - x).abs().amax(0) > 1e-12).double().mean()
    assert 0.01 < float(touched) < 3 * math.pi * 0.1**2 * 1.5 * 1.15**2 * 1.1
    torch.testing.assert_close(raindrop(x, count=0, radius=0.1, blur=0.01, seed=4), x)


def central_drop(seed: int) -> Tensor:
    """Where the first drop of a seed falls, as shares of width and height."""
    return torch.rand(1, 5, generator=generator(seed, "drops"), dtype=torch.float64)[0, :2]


def test_a_drop_shows_the_scene_upside_down() -> None:
    """A ramp that brightens downwards brightens upwards inside a drop."""
    ramp = torch.linspace(0.2, 0.7, 96, dtype=torch.float64).view(1, 96, 1).expand(3, 96, 96)
    seed = next(s for s in range(99) if ((central_drop(s) - 0.5).abs() < 0.1).all())
    wet = raindrop(ramp, count=1, radius=0.2, blur=0.001, seed=seed)
    changed = (wet - ramp)[0].abs() > 1e-3
    column = int(changed.double().sum(0).argmax())
    rows = changed[:, column].nonzero().flatten()
    middle = rows[len(rows) // 3 : -(len(rows) // 3)]
    assert float(wet[0, middle, column].diff().mean()) < 0


def test_low_light_follows_its_law() -> None:
    x = scene()
    dark = low_light(x, alpha=0.9, beta=0.6, gamma=2.5, sigma=0.0, seed=0)
    np.testing.assert_allclose(dark.numpy(), 0.6 * (0.9 * x.numpy()) ** 2.5, rtol=1e-12)
    noisy = low_light(x, alpha=0.9, beta=0.6, gamma=2.5, sigma=0.01, seed=0)
    assert float((noisy - dark).std()) == pytest.approx(0.01, rel=0.1)


def test_motion_keeps_flat_light_and_averages_in_linear_light() -> None:
    flat = torch.full((3, 40, 40), 0.37, dtype=torch.float64)
    torch.testing.assert_close(motion_blur(flat, length=0.2, angle=0.4, bend=1.0), flat, atol=1e-9, rtol=0)
    halves = torch.cat([torch.zeros(3, 41, 20), torch.ones(3, 41, 21)], dim=2).double()
    edge = motion_blur(halves, length=0.5, angle=0.0, bend=0.0)
    linear = edge[0, 20] ** 2.2
    slope = linear.diff()[linear.diff() > 1e-6]
    np.testing.assert_allclose(slope[2:-2].numpy(), float(slope[2:-2].mean()), rtol=0.02)  # light rises evenly


@pytest.mark.parametrize("length", [3, 8, 15])
@pytest.mark.parametrize("bend", [0.0, 1.5])
def test_a_motion_path_has_its_length_and_is_centred(length, bend) -> None:
    kernel = line_kernel(length, angle=0.7, bend=bend)
    assert kernel.shape[0] == kernel.shape[1] and kernel.shape[0] % 2 == 1
    assert float(kernel.sum()) == pytest.approx(1.0)
    flat = line_kernel(length, angle=0.0)
    assert int((flat.sum(0) > 1e-9).sum()) in (length, length + 1) and int((flat.sum(1) > 1e-9).sum()) <= 2
    torch.testing.assert_close(flat, flat.flip(1), atol=0.05, rtol=0)


def test_a_smooth_field_spans_zero_to_one() -> None:
    field = smooth_field(30, 50, cells=3, seed=1, name="x")
    assert (float(field.min()), float(field.max())) == (0.0, 1.0)
    assert float(field.diff(dim=2).abs().max()) < 0.2


@pytest.mark.parametrize("kind", LABELS)
def test_each_kind_has_its_label_and_replays(kind) -> None:
    pipeline = RandomKinds(name=kind, kinds=[kind])
    x = torch.rand(4, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    lq, recipes = pipeline(x, [1, 2, 3, 4])
    assert lq.dtype == torch.float32 and float(lq.min()) >= 0 and float(lq.max()) <= 1
    for i, recipe in enumerate(recipes):
        assert labels(recipe) == tuple(name == kind for name in LABELS)
        assert recipe.instruction()
        assert torch.equal(apply_recipe(Recipe.from_json(recipe.to_json()), x[i]), lq[i])
        assert (lq[i] - x[i]).abs().mean() > 1e-3
    alone, _ = pipeline(x[2:3], [3])
    assert torch.equal(alone[0], lq[2])


def test_mixtures_hold_the_set_number_of_kinds_in_order() -> None:
    pipeline = RandomKinds(name="mixed", counts=[2, 3])
    counts, seen = [], set()
    for seed in range(60):
        recipe = pipeline.draw(seed, 32, 32)
        kinds = [kind for kind in recipe.kinds if kind != "round"]
        places = [[STEP_KINDS[kind] for kind in ORDER].index(kind) for kind in kinds]
        assert places == sorted(places) and sum(labels(recipe)) == len(kinds)
        counts.append(len(kinds))
        seen.update(kinds)
    assert set(counts) == {2, 3} and len(seen) == 8
    with pytest.raises(ValueError, match="degradation 'hail' is not one of noise, low_light"):
        RandomKinds(name="x", kinds=["hail"])
    with pytest.raises(ValueError, match=r"counts=\[3\]: give numbers up to 2"):
        RandomKinds(name="x", kinds=["noise", "snow"], counts=[3])
