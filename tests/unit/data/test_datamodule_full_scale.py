"""Training data at `scale=full`: each method's, from toy copies of the public layouts, as batches with an LQ."""

from __future__ import annotations

from pathlib import Path

import pytest

from restore_lab.config.build import build
from restore_lab.data.datamodule import RestorationDataModule
from restore_lab.degradation.diff_restorer import STEP_KINDS
from restore_lab.degradation.vocabulary import LABELS
from tests.helpers.configs import composed
from tests.helpers.toy_datasets import write_all

METHODS = ("spire", "supir", "diff_restorer", "instantir", "dra", "controlnet", "regression")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> Path:
    return write_all(tmp_path_factory.mktemp("datasets"))


def made(method: str, folder: Path) -> list[str]:
    """The words that a table gives a training for what it has made."""
    parts = {"lsdir": "lsdir", "div2k_train": "div2k", "flickr2k": "flickr2k"}
    pool = {"supir": "data.sources.photographs.sources", "dra": "data.sources"}.get(method)
    places = {f"{pool}.{part}.source.captions": name for part, name in parts.items()} if pool else {}
    places |= {"data.sources.faces.source.captions": "faces"} if method == "supir" else {}
    words = [f"{place}=made:{folder}/{name}-0123456789abcdef/captions.json" for place, name in places.items()]
    return words + ([f"data.sources.negatives.root={folder}/negatives"] if method == "supir" else [])


def training(method: str, folder: Path, *words: str, stage: str = "adaptor") -> RestorationDataModule:
    small = ("workers=0", "crop=16", "min_size=1", "batch_size=16", f"datasets_dir={folder}")
    cfg = composed("train", f"method={method}", "scale=full", *small, *made(method, folder), *words)
    return build(cfg.stages[stage].datamodule)


@pytest.mark.parametrize("method", METHODS)
def test_each_methods_training_reads_the_papers_data(method, datasets) -> None:
    data = training(method, datasets)
    data.setup("fit")
    batch = data.degrade(next(iter(data.train_dataloader())), stage="train")
    assert batch.hq_BCHW is not None and batch.lq_BCHW is not None and batch.lq_BCHW.shape == (16, 3, 16, 16)
    assert not batch.lq_BCHW.isnan().any() and all(batch.recipe)
    expected = {
        "spire": {"a barn for sale"},
        "controlnet": {"a barn for sale"},
        "regression": {"a barn for sale"},
        "dra": {"of lsdir", "of div2k", "of flickr2k"},
        "supir": {"of lsdir", "of div2k", "of flickr2k", "of faces", "blurry, messy"},
        "instantir": {""},
        "diff_restorer": {""},
    }
    assert set(batch.caption) <= expected[method] and (method == "supir" or set(batch.caption) == expected[method])


def test_diff_restorer_sees_its_eight_kinds(datasets) -> None:
    """Six come as pairs and keep their LQ, two are synthesised; over an epoch all turn up."""
    data = training("diff_restorer", datasets, "batch_size=200")
    batch = data.degrade(next(iter(data.train_dataloader())), stage="train")
    kinds = [recipe.kinds for recipe in batch.recipe if recipe]
    assert {kind for found in kinds for kind in found} - {"round"} == set(STEP_KINDS.values())
    assert len(STEP_KINDS) == len(LABELS)
    shares = {kind: sum(kind in found for found in kinds) / 200 for kind in STEP_KINDS.values()}
    assert all(0.04 < share < 0.25 for share in shares.values()), shares
    pipelines = {recipe.kinds[0]: recipe.pipeline for recipe in batch.recipe if recipe}
    assert pipelines["haze"] == "pairs" and pipelines["noise"] == pipelines["jpeg"] == "diff_restorer"


def test_instantirs_first_stage_reads_generated_pictures(datasets) -> None:
    """Its first two stages read JourneyDB with its prompts, in batches of 256; the aggregator the photographs."""
    for stage in ("dcp", "previewer"):
        data = training("instantir", datasets, stage=stage)
        batch = next(iter(data.train_dataloader()))
        assert set(batch.caption) == {"a ship, 8k"} and len(batch) == 256
    keys = next(iter(training("instantir", datasets).train_dataloader())).key
    assert not any(key.startswith("000/a") for key in keys) and len(keys) == 16


def test_supir_mixes_sources_by_the_papers_counts(datasets) -> None:
    shares = composed("train", "method=supir", "scale=full").data.shares
    assert dict(shares) == {"photographs": 20_000_000, "faces": 70_000, "negatives": 100_000}
    even = [f"data.shares.{part}=1" for part in shares]
    data = training("supir", datasets, *even, "batch_size=64")
    assert {"of faces", "blurry, messy"} < set(next(iter(data.train_dataloader())).caption)


def test_missing_training_data_or_captions_are_refused_in_one_line(datasets, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"^LAION: .*/laion.*; restore-lab doctor data=laion datasets_dir=.* checks a"):
        training("spire", tmp_path)
    cfg = composed("train", "method=dra", "scale=full", f"datasets_dir={datasets}")
    with pytest.raises(ValueError, match=r"^LSDIR training: made:lsdir_words: is made by restore-lab table"):
        build(cfg.data)
