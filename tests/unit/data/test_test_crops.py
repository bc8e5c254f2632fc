"""Crops of a test set: the first images, scaled, random squares; labelled pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from restore_lab.data.datamodule import RestorationDataModule
from restore_lab.data.sources.labelled import LabelledPairs
from restore_lab.data.sources.mixed import MixedSource
from restore_lab.data.sources.pooled import PooledSource
from restore_lab.data.test_crops import EvalCrops
from restore_lab.degradation.diff_restorer import STEP_KINDS
from restore_lab.degradation.vocabulary import labels
from restore_lab.evaluation.evaluate import plan_evaluation
from restore_lab.evaluation.systems import plan_system
from restore_lab.types import Recipe, Step
from tests.helpers.configs import composed
from tests.helpers.toy_source import Coordinates, noisy


def cuts(source, **changes) -> EvalCrops:
    return EvalCrops(source=source, **{"first": None, "resize": None, "crop": None, "crops": None, **changes})


def corner(image_HWC: np.ndarray) -> tuple[int, int]:
    return int(image_HWC[0, 0, 0]), int(image_HWC[0, 0, 1])


def test_without_settings_images_are_whole() -> None:
    source = Coordinates(3)
    whole = cuts(source)
    assert len(whole) == 3 and whole.keys() == source.keys()
    assert np.array_equal(whole.read(2).hq_HWC, source.read(2, epoch=0).hq_HWC)


def test_random_squares_depend_on_the_key_alone_and_fall_everywhere() -> None:
    """The same for any order and any number of images; of 64 squares of 8 in 20 x 24 some lie at every edge."""
    many = cuts(Coordinates(2, paired=True), crop=8, crops=64)
    assert len(many) == 128 and many.keys()[:2] == ["k0_0", "k0_1"] and many.read(65).key == "k1_1"
    corners = [corner(many.read(i).hq_HWC) for i in range(128)]
    tops, lefts = zip(*corners, strict=True)
    assert (min(tops), max(tops), min(lefts), max(lefts)) == (0, 12, 0, 16)
    assert corners[:64] != corners[64:]
    again = cuts(Coordinates(1, paired=True), crop=8, crops=64)
    assert [corner(again.read(i).hq_HWC) for i in reversed(range(64))] == corners[:64][::-1]
    for picture in (many.read(i) for i in range(4)):  # the LQ of a pair is cut where its HQ is
        assert picture.hq_HWC.shape == (8, 8, 3) and np.array_equal(picture.lq_HWC, picture.hq_HWC + np.uint8(100))


def test_images_are_scaled_before_cropping() -> None:
    picture = cuts(Coordinates(1), resize=10).read(0)
    assert picture.hq_HWC.shape == (10, 12, 3)
    assert cuts(Coordinates(1), resize=40, crop=16, crops=1).read(0).hq_HWC.shape == (16, 16, 3)
    lone = cuts(Coordinates(1), crop=8, crops=1)
    assert lone.keys() == ["k0"] == [lone.read(0).key]


def test_eval_first_takes_the_first_images() -> None:
    assert cuts(Coordinates(5), first=2).keys() == ["k0", "k1"]
    assert cuts(Coordinates(2), first=3, crop=8, crops=2).keys() == ["k0_0", "k0_1", "k1_0"]
    with pytest.raises(ValueError, match="eval_first=6: there are 5 pictures"):
        cuts(Coordinates(5), first=6)
    with pytest.raises(ValueError, match="eval_crops=2 needs the side"):
        cuts(Coordinates(5), crops=2)
    with pytest.raises(ValueError, match=r"EvalCrops\.resize=0: expected a whole number"):
        cuts(Coordinates(5), resize=0)


def test_each_setting_changes_the_identity_of_the_record() -> None:
    """A null is no setting, so records made before there was one keep their identity."""
    settings = plan_evaluation(composed("evaluate")).settings
    assert not {"eval_first", "eval_resize", "eval_crops"} & settings.keys()
    words = [(), ("eval_first=2",), ("eval_resize=32",), ("eval_crop=16", "eval_crops=3"), ("eval_crop=16",)]
    assert len({plan_evaluation(composed("evaluate", *own)).identity for own in words}) == len(words)
    system = ("system=README.md",)
    assert len({plan_system(composed("evaluate", *system, *own)).identity for own in words}) == len(words)


def test_an_evaluation_measures_the_crops() -> None:
    from restore_lab.config.build import build

    data = build(composed("evaluate", "eval_first=3", "eval_crop=16", "eval_crops=2", "eval_data.crops=0").datamodule)
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert batch.key == ("astronaut_0", "astronaut_1", "chelsea_0") and batch.hq_BCHW.shape[-2:] == (16, 16)


def test_labelled_pairs_share_a_batch_with_images_to_degrade() -> None:
    """Pairs keep their LQ and have the label's recipe; the others get LQ and recipe, in training and in evaluation."""
    parts = {
        "pairs": LabelledPairs(source=Coordinates(3, paired=True), kind=STEP_KINDS["haze"]),
        "alone": Coordinates(3),
    }
    data = RestorationDataModule(
        test=PooledSource(sources=parts), eval_degradation=noisy, eval_crop=8, eval_batch_size=6, workers=0
    )
    (batch,) = data.test_dataloader()
    assert batch.lq_BCHW[3:].isnan().all() and not batch.lq_BCHW[:3].isnan().any()
    done = data.degrade(batch, stage="test")
    assert torch.allclose(done.lq_BCHW[:3] - done.hq_BCHW[:3], torch.tensor(100 / 255))
    expected, recipes = noisy(done.hq_BCHW[3:], done.seed[3:])
    assert torch.equal(done.lq_BCHW[3:], expected) and list(done.recipe[3:]) == recipes
    haze = Recipe(pipeline="pairs", seed=0, steps=(Step(kind="haze"),))
    assert done.recipe[:3] == (haze,) * 3 and labels(haze) == tuple(kind == "haze" for kind in STEP_KINDS)
    assert data.degrade(done, stage="test") is done
    with pytest.raises(ValueError, match="only pairs can be labelled"):
        LabelledPairs(source=Coordinates(1), kind="haze").read(0)


def test_unlabelled_pairs_share_no_batch_with_images_to_degrade() -> None:
    parts = {"pairs": Coordinates(1, paired=True), "alone": Coordinates(1)}
    data = RestorationDataModule(test=PooledSource(sources=parts), eval_degradation=noisy, eval_crop=8)
    with pytest.raises(ValueError, match="has no LQ, pairs/k0 has one"):
        next(iter(data.test_dataloader()))


def test_a_pooled_share_draws_other_pictures_each_epoch() -> None:
    mixed = MixedSource(sources={"main": Coordinates(20), "few": Coordinates(1000)}, shares={"main": 1, "few": 1})
    seen = [{mixed.read(i, epoch=epoch).caption for i in range(20)} for epoch in range(3)]
    assert seen[0] != seen[1] != seen[2]
    assert [mixed.read(i, epoch=1).key for i in range(20)] == [mixed.read(i, epoch=1).key for i in range(20)]
