"""Every kind of step of every `conf/degradation` pipeline has its name wherever kinds are named."""

from __future__ import annotations

from functools import cache

import pytest

from restore_lab.config.build import build
from restore_lab.config.conf_dir import conf_dir
from restore_lab.degradation.diff_restorer import STEP_KINDS
from restore_lab.degradation.vocabulary import LABELS, NAMES, UNNAMED, degradation_word, labels
from restore_lab.degradation.weather import WEATHER
from restore_lab.methods.dra import describe_degradation
from restore_lab.types import REMOVE_ALL, Recipe, Step
from tests.helpers.configs import part

PIPELINES = sorted(path.stem for path in (conf_dir() / "degradation").glob("*.yaml"))


@cache
def recipes(name: str) -> list[Recipe]:
    cfg = part(f"degradation={name}")
    if "usm" in cfg:
        cfg.usm = True
    pipeline = build(cfg)
    return [pipeline.draw(seed, 64, 96) for seed in range(300)]


@pytest.mark.parametrize("name", PIPELINES)
def test_every_kind_of_every_pipeline_has_its_words(name) -> None:
    for recipe in recipes(name):
        for step in recipe.steps:
            assert (step.kind in NAMES) != (step.kind in UNNAMED), step.kind
            assert bool(degradation_word(step)) == (step.kind in NAMES)
            if step.kind in NAMES and not recipe.blind and step is not recipe.steps[-1]:  # that may be the resize back
                assert step.says and step.says_type, step.kind
        if recipe.blind:
            assert recipe.instruction() == REMOVE_ALL
        held = {NAMES[kind][1] for kind in recipe.kinds if kind in NAMES}
        assert {label for label, there in zip(LABELS, labels(recipe), strict=True) if there} == held


def test_the_pipelines_draw_every_kind_that_has_a_name() -> None:
    drawn = {kind for name in PIPELINES for recipe in recipes(name) for kind in recipe.kinds}
    assert drawn == {*NAMES, *UNNAMED}
    assert set(WEATHER) <= drawn and set(STEP_KINDS.values()) <= drawn
    assert {label for _, label in NAMES.values()} == set(LABELS)


def test_ringing_has_its_label_and_poisson_noise_is_noise() -> None:
    """By Real-ESRGAN's own recipes: sinc filters are kernels of its blur, Poisson a law of its noise."""
    steps = [step for recipe in recipes("real_esrgan") for step in recipe.steps]
    sinc = [step for step in steps if step.params.get("family") == "sinc"]
    poisson = [step for step in steps if step.params.get("law") == "poisson"]
    assert sinc and {degradation_word(step) for step in sinc} == {"ringing"}
    assert poisson and {degradation_word(step) for step in poisson} == {"noisy"}
    assert {degradation_word(s) for s in steps if s.kind == "blur" and s.params["family"] != "sinc"} == {"blurry"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("haze", "hazy"),
        ("rain", "rainy"),
        ("raindrop", "raindrops on the lens"),
        ("snow", "snowy"),
        ("low_light", "low light"),
        ("motion_blur", "motion blur"),
        ("blur", "blurry"),
        ("noise", "noisy"),
        ("jpeg", "compressed"),
        ("sr4", "low resolution"),
        ("mixture", "blurry, low resolution, noisy, compressed"),
    ],
)
def test_dra_describes_an_lq_target_by_its_degradations(name, words) -> None:
    assert {describe_degradation(recipe) for recipe in recipes(name)} == {f"low quality, {words}"}


def test_an_unknown_kind_has_no_label() -> None:
    recipe = Recipe(pipeline="mine", seed=0, steps=(Step(kind="shake"), Step(kind="jpeg")))
    assert describe_degradation(recipe) == "low quality, compressed" and sum(labels(recipe)) == 1
