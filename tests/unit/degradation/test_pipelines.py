"""The pipelines of conf/degradation: draws against the papers' numbers, replay, independence of the batch, words."""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import cache

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch.nn import functional as F

from restore_lab.degradation.apply import Pipeline, apply_recipe, apply_recipes, sharpened_targets
from restore_lab.degradation.fixed import FixedDegradation
from restore_lab.degradation.parameterized import Parameterized
from restore_lab.types import REMOVE_ALL, Recipe, Step
from tests.helpers.checkout import CONF

NAMES = sorted(path.stem for path in (CONF / "degradation").glob("*.yaml"))
DRAWS = 2000


@cache
def pipeline(name: str, *overrides: str) -> Pipeline:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=[f"+degradation={name}", *overrides])
    return instantiate(config.degradation, _convert_="all")


@cache
def draws(name: str) -> tuple[Recipe, ...]:
    return tuple(pipeline(name).draw(seed, 512, 384) for seed in range(DRAWS))


def images(count: int, *, height: int = 48, width: int = 64) -> torch.Tensor:
    coarse = torch.rand(count, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)


def share(hits: int, count: int, *, expected: float) -> None:
    """A proportion within four standard errors of what it should be."""
    assert abs(hits / count - expected) < 4 * math.sqrt(max(expected * (1 - expected), 1e-9) / count), (hits, count)


@pytest.mark.parametrize("name", NAMES)
def test_every_pipeline_replays_bit_identically_and_keeps_size_and_range(name: str) -> None:
    hq, seeds = images(4), [11, 12, 13, 14]
    lq, recipes = pipeline(name)(hq, seeds)
    assert lq.shape == hq.shape and lq.dtype == torch.float32
    assert float(lq.min()) >= 0 and float(lq.max()) <= 1
    read_back = [Recipe.from_json(recipe.to_json()) for recipe in recipes]
    assert tuple(read_back) == recipes
    assert torch.equal(apply_recipes(read_back, hq), lq)
    assert [pipeline(name).draw(seed, 48, 64) for seed in seeds] == list(recipes)


@pytest.mark.parametrize("name", ["real_esrgan", "spire"])
def test_a_sample_does_not_depend_on_batch_or_threads(name: str) -> None:
    hq, seeds = images(5), [3, 1, 4, 15, 9]
    lq, recipes = pipeline(name)(hq, seeds)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        alone = torch.stack([pipeline(name)(hq[i : i + 1], seeds[i : i + 1])[0][0] for i in range(5)])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone, lq)
    assert torch.equal(apply_recipe(recipes[3], hq[3]), lq[3])
    same = pipeline(name)(hq[:1].expand(5, -1, -1, -1), seeds)[0]
    assert not any(torch.equal(same[0], other) for other in same[1:])


def test_images_smaller_than_the_kernels_are_degraded() -> None:
    lq, _ = pipeline("real_esrgan")(images(12, height=9, width=7), list(range(12)))
    assert torch.isfinite(lq).all()


@pytest.mark.parametrize(
    ("name", "second_blur", "levels", "qualities", "smallest"),
    [("real_esrgan", 0.8, (1, 30), (30, 95), 0.15), ("real_esrgan_light", 0.5, (1, 15), (60, 100), 0.3)],
)
def test_second_order_draws_have_the_published_ranges(
    name: str, second_blur: float, levels: tuple[int, int], qualities: tuple[int, int], smallest: float
) -> None:
    recipes = [recipe for recipe in draws(name) if recipe.steps]
    assert all(recipe.blind and recipe.instruction() == REMOVE_ALL for recipe in recipes)
    every = [step for recipe in recipes for step in recipe.steps]
    sigmas = [s.params["sigma"] * 255 for s in every if s.params.get("law") == "gaussian"]
    assert levels[0] <= min(sigmas) < levels[0] + 0.5 and levels[1] - 0.5 < max(sigmas) <= levels[1]
    quality = [step.params["quality"] for step in every if step.kind == "jpeg"]
    assert (min(quality), max(quality)) == qualities
    assert len(quality) == 2 * len(recipes)
    noises = [step for step in every if step.kind == "noise"]
    share(len(sigmas), len(noises), expected=0.5)
    share(sum(step.params["grey"] for step in noises), len(noises), expected=0.4)
    assert all(recipe.steps[2].kind == "noise" or recipe.steps[1].kind == "noise" for recipe in recipes)
    heights = [recipe.steps[1].params["height"] for recipe in recipes if recipe.steps[1].kind == "resize"]
    share(len(heights), len(recipes), expected=0.9)
    assert int(512 * smallest) <= min(heights) < 512 * (smallest + 0.05) and max(heights) <= 768
    # Blurs before the first noise: one; between the two noises: the second order's.
    between = [[s.kind for s in r.steps] for r in recipes]
    cut = [(k.index("noise"), len(k) - 1 - k[::-1].index("noise")) for k in between]
    second = sum("blur" in kinds[a:b] for kinds, (a, b) in zip(between, cut, strict=True))
    blurs = [s for r, (a, b) in zip(recipes, cut, strict=True) for s in r.steps[a:b] if s.kind == "blur"]
    assert sorted({step.params["size"] for step in blurs}) == [7, 9, 11, 13, 15, 17, 19, 21]
    share(second, len(recipes), expected=second_blur)
    assert all(kinds[0] == "blur" and kinds[:a].count("blur") == 1 for kinds, (a, _) in zip(between, cut, strict=True))
    last_sinc = sum("blur" in kinds[b:] for kinds, (_, b) in zip(between, cut, strict=True))
    share(last_sinc, len(recipes), expected=0.8)


def test_kernel_families_sizes_and_betas_are_real_esrgans() -> None:
    first = [recipe.steps[0].params for recipe in draws("real_esrgan")]
    share(sum(p["family"] == "sinc" for p in first), len(first), expected=0.1)
    drawn = [p for p in first if p["family"] != "sinc"]
    shapes = Counter((p["family"], "iso" if p["sigma_x"] == p["sigma_y"] else "aniso") for p in drawn)
    published = {("gaussian", "iso"): 0.45, ("gaussian", "aniso"): 0.25, ("generalized", "iso"): 0.12}
    published |= {("generalized", "aniso"): 0.03, ("plateau", "iso"): 0.12, ("plateau", "aniso"): 0.03}
    for shape, expected in published.items():
        share(shapes[shape], len(drawn), expected=expected)
    sizes = Counter(p["size"] for p in first)
    assert sorted(sizes) == [7, 9, 11, 13, 15, 17, 19, 21]
    for count in sizes.values():
        share(count, len(first), expected=1 / 8)
    betas = [p["beta"] for p in drawn if p["family"] == "generalized"]
    share(sum(beta < 1 for beta in betas), len(betas), expected=0.5)
    assert min(betas) >= 0.5 and max(betas) <= 4
    plateau = [p["beta"] for p in drawn if p["family"] == "plateau"]
    share(sum(beta == 1 for beta in plateau), len(plateau), expected=0.5)
    for p in first:
        if p["family"] == "sinc":
            assert math.pi / (3 if p["size"] < 13 else 5) <= p["cutoff"] <= math.pi


def test_the_second_order_ends_in_either_order_then_8_bit_then_the_hq_size() -> None:
    jpeg_last = 0
    for recipe in draws("real_esrgan"):
        kinds = [step.kind for step in recipe.steps]
        assert kinds[-2:] == ["round", "resize"]
        assert recipe.steps[-1].params == {"height": 512, "width": 384, "mode": "bicubic"}
        jpeg_last += kinds[-3] == "jpeg"
        small = [(s.params["height"], s.params["width"]) for s in recipe.steps[:-1] if s.kind == "resize"]
        assert small[-1] == (128, 96)
    # JPEG is last half of the time, and also when it comes first but there is nothing left to resize or filter.
    share(jpeg_last, DRAWS, expected=0.5)


def test_light_settings_leave_one_image_in_a_hundred_clean() -> None:
    share(sum(not recipe.steps for recipe in draws("real_esrgan_light")), DRAWS, expected=0.01)


def test_usm_is_recorded_and_sharpens_the_target() -> None:
    hq = images(2)
    _, recipes = pipeline("real_esrgan", "degradation.usm=true")(hq, [1, 2])
    assert [recipe.steps[0].kind for recipe in recipes] == ["usm", "usm"]
    assert not torch.equal(sharpened_targets(recipes, hq), hq)
    _, plain = pipeline("real_esrgan")(hq, [1, 2])
    assert torch.equal(sharpened_targets(plain, hq), hq)
    assert recipes[0].steps[1:] == plain[0].steps


WORDS = {
    "Deblur": (r"Deblur with sigma (\d\.\d)", 0.2, 3.0),
    "Upsample": (r"Upsample to (\d\.\d)x", 1.0, 7.0),
    "Denoise": (r"Denoise with sigma (\d\.\d\d)", 0.0, 0.12),
    "Dejpeg": (r"Dejpeg with quality (\d+)", 30, 92),
}


def test_parameterized_follows_table_2() -> None:
    order, numbers = list(WORDS), {word: [] for word in WORDS}
    for recipe in draws("parameterized"):
        types = [word for word in recipe.instruction(values=False).split("; ") if word]
        assert types == sorted(types, key=order.index)
        said = [part for part in recipe.instruction().split("; ") if part]
        for word, part in zip(types, said, strict=True):
            match = re.fullmatch(WORDS[word][0], part)
            assert match is not None, part
            numbers[word].append(float(match[1]))
    for word, (_, low, high) in WORDS.items():
        share(len(numbers[word]), DRAWS, expected=0.5)
        assert low <= min(numbers[word]) < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < max(numbers[word]) <= high
        assert sum(numbers[word]) / len(numbers[word]) == pytest.approx((low + high) / 2, rel=0.05)
    share(sum(not recipe.instruction() for recipe in draws("parameterized")), DRAWS, expected=1 / 16)


def test_the_instructions_numbers_are_the_applied_ones() -> None:
    for recipe in draws("parameterized")[:300]:
        for step in recipe.steps:
            if step.kind == "blur":
                assert step.says == f"Deblur with sigma {step.params['sigma_x']:.1f}"
                assert step.params["sigma_x"] == round(step.params["sigma_x"], 1) == step.params["sigma_y"]
            elif step.kind == "downsample":
                factor = float(step.says.removeprefix("Upsample to ").removesuffix("x"))
                assert (step.params["height"], step.params["width"]) == (round(512 / factor), round(384 / factor))
            elif step.kind == "noise":
                assert step.params["sigma"] == float(step.says.split()[-1])
            elif step.kind == "jpeg":
                assert step.params["quality"] == int(step.says.split()[-1])
            else:
                assert step.kind in ("round", "resize") and not step.says


def test_without_stages_the_image_is_unchanged_and_the_instruction_empty() -> None:
    hq = images(1)
    lq, (recipe,) = Parameterized(name="nothing", keep=0.0)(hq, [1])
    assert torch.equal(lq, hq)
    assert recipe.steps == () and recipe.instruction() == ""


def test_strong_setting_always_degrades_and_stays_at_its_end() -> None:
    for recipe in draws("parameterized_strong"):
        assert recipe.steps
        for step in recipe.steps:
            if step.kind == "noise":
                assert 0.08 <= step.params["sigma"] <= 0.12


def test_spires_pipeline_is_half_blind_and_half_parameterized() -> None:
    names = Counter(recipe.pipeline for recipe in draws("spire"))
    assert sorted(names) == ["parameterized", "real_esrgan"]
    share(names["real_esrgan"], DRAWS, expected=0.5)
    # The choice must not tell what is drawn: the share of kept blurs is that of the pipeline alone.
    spoken = [recipe for recipe in draws("spire") if not recipe.blind]
    share(sum("blur" in recipe.kinds for recipe in spoken), len(spoken), expected=0.5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sr4", "Upsample to 4.0x"),
        ("sr8", "Upsample to 8.0x"),
        ("blur2_sr4", "Deblur with sigma 2.0; Upsample to 4.0x"),
        ("sr4_noise40", "Upsample to 4.0x; Denoise with sigma 0.16"),
        ("mixture", "Deblur with sigma 2.0; Upsample to 4.0x; Denoise with sigma 0.08; Dejpeg with quality 50"),
    ],
)
def test_supirs_test_protocols_have_their_degradations(name: str, words: str) -> None:
    recipe = pipeline(name).draw(5, 64, 64)
    assert recipe.instruction() == words
    noise = [step.params["sigma"] * 255 for step in recipe.steps if step.kind == "noise"]
    assert noise == pytest.approx({"sr4_noise40": [40], "mixture": [20]}.get(name, []))


def test_a_fixed_noise_has_its_std_and_another_seed_another_field() -> None:
    flat = torch.full((2, 3, 128, 128), 0.5)
    lq, _ = pipeline("noise", "degradation.stages.noise=0.06")(flat, [1, 2])
    # Rounding to 8 bit adds a twelfth of a level squared.
    expected = math.sqrt(0.06**2 + (1 / 255) ** 2 / 12)
    assert float((lq - flat).std()) == pytest.approx(expected, rel=0.02)
    assert not torch.equal(lq[0], lq[1])
    assert torch.allclose(lq * 255, (lq * 255).round(), atol=1e-4)


def test_bad_arguments_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="odd: unknown stage 'rain'; there are blur, downsample, noise, jpeg"):
        FixedDegradation(name="odd", stages={"rain": 1.0})
    with pytest.raises(ValueError, match=r"odd: downsample=0\.5 is out of range"):
        FixedDegradation(name="odd", stages={"downsample": 0.5})
    with pytest.raises(ValueError, match="1 seeds for 2 images"):
        pipeline("sr4")(images(2), [1])
    with pytest.raises(ValueError, match="cannot apply step 'hail'"):
        apply_recipe(Recipe(pipeline="x", seed=0, steps=(Step(kind="hail"),)), images(1)[0])


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_replays_within_one_level(name: str) -> None:
    hq = images(8)
    lq, recipes = pipeline(name)(hq, list(range(8)))
    assert (apply_recipes(recipes, hq.cuda()).cpu() - lq).abs().max() <= 1 / 255
