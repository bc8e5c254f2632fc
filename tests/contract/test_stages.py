"""The staged methods at toy size: every stage reads the artefact of the one before, and none is made twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from restore_lab.config.build import build
from restore_lab.degradation.diff_restorer import RandomKinds
from restore_lab.inference.restorer import load_method
from restore_lab.methods.weights import WEIGHTS
from restore_lab.storage.artefact import Manifest
from restore_lab.training.run import fit
from restore_lab.types import Batch
from tests.helpers.configs import composed, few_photos
from tests.helpers.prior_cache import read_once
from tests.helpers.toy_methods import toy_batch
from tests.helpers.toy_priors import toy_unet_folder

METHODS = {"supir": ("encoder", "adaptor"), "diff_restorer": ("adaptor", "decoder")}
OWN = {
    "supir": ("method=supir", "encoder_steps=2"),
    "diff_restorer": (
        "method=diff_restorer",
        "decoder_steps=2",
        "stages.decoder.module.discriminator.layers=1",
        "adaptor.encoder.widths=[4,4,8]",
        "adaptor.encoder.out=4",
        "adaptor.encoder.embedding=6",
        "module.processor.hidden=8",
        "module.processor.degradation=6",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def priors_read_once() -> Iterator[None]:
    with read_once():
        yield


@pytest.fixture(scope="module")
def priors(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("priors")
    return {"supir": toy_unet_folder(folder, "sdxl"), "diff_restorer": toy_unet_folder(folder, "sd")}


def common(prior: Path) -> tuple[str, ...]:
    sizes = ("crop=16", "batch_size=2", "workers=0", "precision=32-true", "sampler.steps=2", *few_photos())
    return (f"backbone.path={prior}", "name=run", *sizes)


def trained(method: str, prior: Path, runs: Path, *words: str) -> Path:
    quick = ("data.size=16", "max_steps=2", "trainer.accelerator=cpu", "progress=false", "module.weights_dtype=float32")
    return fit(composed("train", *OWN[method], *common(prior), *quick, *words, runs_dir=str(runs)))


def folders(runs: Path) -> dict[str, set[str]]:
    """Artefacts by stage."""
    found: dict[str, set[str]] = {}
    for path in (runs / "run").iterdir():
        found.setdefault(path.name.partition("-")[0], set()).add(path.name)
    return found


@pytest.mark.parametrize("method", list(METHODS))
def test_every_staged_method_trains_all_stages_and_restores(method, priors, tmp_path) -> None:
    first, second = METHODS[method]
    last = trained(method, priors[method], tmp_path)
    assert {stage: len(found) for stage, found in folders(tmp_path).items()} == {first: 1, second: 1}
    (before,) = (tmp_path / "run").glob(f"{first}-*")
    assert Manifest.read(last).parents == (Manifest.read(before).identity,)

    own = [word for word in OWN[method] if not word.startswith("stages.")]
    cfg = composed("restore", *own, *common(priors[method]), "input=x", f"weights={last}")
    module = load_method(cfg)
    assert module.restore(toy_batch()).shape == toy_batch().lq_BCHW.shape
    if method == "supir":  # the encoder is the first stage's, and came with the second's weights
        cfg = composed("restore", *own, *common(priors[method]), "input=x", "weights=null")
        cfg.lq_encoder.weights = str(before)
        alone = load_method(cfg).lq_encoder.state_dict()
        for name, value in module.lq_encoder.state_dict().items():
            torch.testing.assert_close(alone[name], value, atol=0, rtol=0, msg=name)
    else:  # the last file has both stages' tensors, those of the first as the first left them
        from safetensors.torch import load_file

        early, late = load_file(before / WEIGHTS), load_file(last / WEIGHTS)
        assert all(torch.equal(late[name], value) for name, value in early.items())
        assert {name.partition(".")[0] for name in late.keys() - early.keys()} == {"decoder"}


def test_changing_a_later_stage_keeps_the_earlier_ones(priors, tmp_path) -> None:
    for method, later in (("supir", "adaptor.trunk.depth=whole"), ("diff_restorer", "decoder.blocks=1")):
        first, second = METHODS[method]
        runs = tmp_path / method
        trained(method, priors[method], runs)
        trained(method, priors[method], runs, "sampler.steps=3", "prompt.negative=x")  # restoring's alone: nothing anew
        assert {stage: len(found) for stage, found in folders(runs).items()} == {first: 1, second: 1}
        trained(method, priors[method], runs, later)
        assert {stage: len(found) for stage, found in folders(runs).items()} == {first: 1, second: 2}


ABLATIONS = {
    "III w/o DMB": "adaptor.encoder.embedding=0",
    "III w/o CD, IV w/o L_rec": "module.reconstruction_weight=0",
    "IV w/o L_deg": "module.degradation_weight=0",
    "V SD decoder": "decoder=codec",
    "V w/o DRB": "decoder.blocks=0",
}


def diff_restorer(priors: dict[str, Path], *words: str) -> tuple[Any, int]:
    """The method, and how many numbers are trained or decode."""
    own = (*OWN["diff_restorer"], *common(priors["diff_restorer"]), "data.size=16")
    module = build(composed("train", *own, *words).module)
    parts = (*module.trainable().values(), *module.decoder.parameters())
    return module, sum(p.numel() for p in parts)


@pytest.fixture(scope="module")
def whole_size(priors) -> int:
    return diff_restorer(priors)[1]


@pytest.mark.parametrize("row", list(ABLATIONS))
def test_every_ablation_of_diff_restorer_is_one_override(row, priors, whole_size) -> None:
    """It takes something away, and what is left still learns and restores. (w/o B_s needs CLIP ViT-L/14: unit test.)"""
    part, size = diff_restorer(priors, ABLATIONS[row])
    assert size < whole_size
    pairs = eight_pairs()
    part.loss(pairs, step=0)["loss"].backward()
    assert any(p.grad is not None for p in part.trainable().values())
    assert part.restore(pairs).shape == pairs.lq_BCHW.shape


def eight_pairs() -> Batch:
    hq = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    lq, recipes = RandomKinds(name="x")(hq, [0, 1])
    return replace(toy_batch(), hq_BCHW=hq, lq_BCHW=lq, recipe=recipes)
