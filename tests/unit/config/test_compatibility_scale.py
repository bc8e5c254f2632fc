"""A scale follows the prior, a method's numbers win over a scale's, and a mixture is named in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig

from restore_lab.config.compatibility import scale_mismatch
from tests.helpers.configs import composed

FULL, TINY = 512, 64  # crops


def scale() -> str:
    return HydraConfig.get().runtime.choices.scale


@pytest.mark.parametrize(
    ("verb", "words", "expected"),
    [
        ("train", ("backbone=sdxl",), "full"),
        ("restore", ("backbone=sd35_medium", "method=supir"), "full"),
        ("describe", ("backbone=sd21_base",), "full"),
        ("evaluate", ("backbone=tiny_sd3", "method=dra"), "tiny"),
        ("data", ("backbone=sdxl", "output=x"), "full"),
        ("data", ("output=x",), "tiny"),
        ("train", ("backbone=sdxl", "scale=tiny"), "tiny"),
        ("train", ("backbone=tiny_sd", "scale=full"), "full"),
        ("train", ("experiment=dra/sd3",), "tiny"),
        ("train", ("experiment=dra/sd3", "backbone=sd3"), "full"),
        ("train", ("scale=full",), "full"),
    ],
)
def test_the_scale_follows_the_prior_unless_it_is_typed(verb, words, expected) -> None:
    cfg = composed(verb, *words)
    assert scale() == expected
    assert cfg.crop == {"full": FULL, "tiny": TINY}[expected]
    typed = "scale=" in " ".join(words) and "backbone=" in " ".join(words)
    line = scale_mismatch(cfg, HydraConfig.get().runtime.choices)
    assert (line is not None) == typed
    if line is not None:
        assert f"with scale={expected} is a {'toy' if expected == 'full' else 'full'} prior" in line
        assert f"crop {cfg.crop}" in line and "\n" not in line


def test_a_prior_sets_every_number_of_its_scale() -> None:
    """DRA on SDXL: adapters in every block, the paper's rank, rate, sampler and data."""
    by_prior, by_scale = composed("train", "method=dra", "backbone=sdxl"), composed("train", "method=dra", "scale=full")
    assert by_prior == by_scale
    toy = composed("train", "method=dra", "backbone=sdxl", "scale=tiny")
    assert by_prior.sampler.steps == 100 and toy.sampler.steps == 20


@pytest.fixture
def own(tmp_path) -> str:
    """A folder of the user's own: a method, a prior that builds on a shipped one, and one that says nothing."""
    texts = {
        "method/quick.yaml": "# @package _global_\ndefaults: [spire]\nsampler: {steps: 1}\noptimisation: {lr: 3e-4}\n",
        "backbone/mine.yaml": "defaults: [sdxl, _self_]\npath: /models/mine\n",
        "backbone/bare.yaml": "_target_: restore_lab.backbones.loading.load.load_backbone\npath: /x\nfamily: unet\n",
        "scale/middle.yaml": "# @package _global_\ncrop: 128\nmax_steps: 77\n",
    }
    for name, text in texts.items():
        file = Path(tmp_path, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return f"hydra.searchpath=[file://{tmp_path}]"


def test_a_methods_numbers_win_over_a_scales(own) -> None:
    cfg = composed("restore", own, "method=quick", "input=x")
    assert cfg.sampler.steps == 1 and cfg.optimisation.lr == 3e-4
    assert composed("restore", own, "method=spire", "input=x").sampler.steps == 2  # the scale's own file for SPIRE
    assert composed("restore", "method=regression", "input=x").sampler.steps == 1


def test_a_custom_prior_takes_the_scale_of_its_base_or_is_refused(own) -> None:
    cfg = composed("train", own, "backbone=mine")
    assert scale() == "full" and cfg.backbone.path == "/models/mine"
    assert scale_mismatch(cfg, HydraConfig.get().runtime.choices) is None
    bare = composed("train", own, "backbone=bare")
    line = scale_mismatch(bare, HydraConfig.get().runtime.choices)
    assert line is not None and "backbone=bare with scale=tiny is a full prior with the toy's" in line


def test_a_custom_scale_is_taken(own) -> None:
    cfg = composed("train", own, "scale=middle", "backbone=tiny_sd")
    assert (cfg.crop, cfg.max_steps) == (128, 77)
