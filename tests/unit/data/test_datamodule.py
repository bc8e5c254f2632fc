"""The data module: batches are a function of (seed, epoch, index), for any workers or interruptions."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor

from restore_lab.data.datamodule import RestorationDataModule
from restore_lab.data.dataset import RestorationDataset, choose_window
from restore_lab.data.image_io import write_png
from restore_lab.data.sampler import PositionSampler, SequentialSampler
from restore_lab.data.sources.folder import FolderSource
from restore_lab.random import mix
from restore_lab.types import Batch
from tests.helpers.toy_source import Coordinates, first_batches, noisy, same_batch


def test_batches_do_not_depend_on_the_workers() -> None:
    source = Coordinates(7, bad=(2, 3))
    streams = [
        first_batches(RestorationDataModule(train=source, degradation=noisy, crop=8, batch_size=3, workers=n), 6)
        for n in (0, 2)
    ]
    assert all(same_batch(a, b) for a, b in zip(*streams, strict=True))
    assert len({batch.seed for batch in streams[0]}) == 6


def test_batches_follow_the_position_sampler() -> None:
    data = RestorationDataModule(train=Coordinates(5), degradation=noisy, crop=8, batch_size=4, seed=3)
    order = PositionSampler(5, batch_size=4, seed=3)
    for number, batch in enumerate(first_batches(data, 5)):
        positions = [order.at(4 * number + slot) for slot in range(4)]
        assert batch.seed == tuple(mix(3, epoch, index) for epoch, index in positions)
        assert batch.key == tuple(f"k{index}" for _, index in positions)
        assert batch.hq_BCHW.dtype == torch.float32 and batch.hq_BCHW.shape == (4, 3, 8, 8)
        expected, recipes = noisy(batch.hq_BCHW, batch.seed)
        assert torch.equal(batch.lq_BCHW, expected) and batch.recipe == tuple(recipes)


def test_every_epoch_has_all_pictures_in_a_new_order_and_ranks_share_it() -> None:
    whole = [position for batch in itertools.islice(PositionSampler(10, batch_size=5, seed=0), 4) for position in batch]
    assert [sorted(index for e, index in whole if e == epoch) for epoch in (0, 1)] == [list(range(10))] * 2
    assert [i for e, i in whole if e == 0] != [i for e, i in whole if e == 1]
    ranks = [itertools.islice(PositionSampler(10, batch_size=4, seed=0, start=4, rank=r, world=2), 4) for r in (0, 1)]
    parts = [[position for batch in rank for position in batch] for rank in ranks]
    assert [p for pair in zip(*parts, strict=True) for p in pair] == whole[4:20]
    with pytest.raises(ValueError, match="batch_size=4 does not divide among 3 processes"):
        PositionSampler(10, batch_size=4, seed=0, rank=0, world=3)
    finite = [list(SequentialSampler(11, batch_size=2, rank=rank, world=3)) for rank in range(3)]
    assert sorted(index for rank in finite for batch in rank for _, index in batch) == list(range(11))
    assert [len(SequentialSampler(11, batch_size=2, rank=rank, world=3)) for rank in range(3)] == [
        len(f) for f in finite
    ]


def test_crops_and_flips_are_windows_and_the_same_for_lq_and_hq() -> None:
    dataset = RestorationDataset(Coordinates(1, paired=True), crop=6, flip=True, seed=0)
    corners, mirrored = set(), 0
    for epoch in range(60):
        sample = dataset[epoch, 0]
        hq_CHW, lq_CHW = sample.hq_CHW * 255, sample.lq_CHW * 255
        assert torch.allclose(lq_CHW - hq_CHW, torch.tensor(100.0))
        step = float(hq_CHW[1, 0, 1] - hq_CHW[1, 0, 0])
        mirrored += round(step) == -1
        corners.add((round(float(hq_CHW[0].min())), round(float(hq_CHW[1].min()))))
        assert round(abs(step)) == 1 and round(float(hq_CHW[0, 5, 0] - hq_CHW[0, 0, 0])) == 5
    assert 18 <= mirrored <= 42 and len(corners) > 40
    assert max(top for top, _ in corners) <= 14 and max(left for _, left in corners) <= 18
    assert torch.equal(dataset[7, 0].hq_CHW, dataset[7, 0].hq_CHW)


def test_small_images_are_enlarged_to_the_crop() -> None:
    sample = RestorationDataset(Coordinates(1, height=5, width=9), crop=16, flip=False, seed=0)[0, 0]
    assert sample.hq_CHW.shape == (3, 16, 16)
    window = choose_window(5, 9, crop=16, flip=True, draw=None)
    assert (window.height, window.width, window.top, window.left, window.mirrored) == (16, 29, 0, 6, False)


def test_a_training_image_is_shrunk_no_further_than_min_scale_or_the_crop() -> None:
    def sides(crop: int, min_scale: float) -> list[int]:
        draws = [np.random.default_rng(number) for number in range(200)]
        return [choose_window(64, 96, crop=crop, flip=False, min_scale=min_scale, draw=draw).height for draw in draws]

    assert set(sides(16, 1.0)) == {64}
    assert 32 <= min(sides(16, 0.5)) < 36 and 60 < max(sides(16, 0.5)) <= 64
    assert 16 <= min(sides(16, 0.1)) < 18  # where the crop is all of the short side
    assert abs(sum(side < 32 for side in sides(16, 0.25)) / 200 - 0.5) < 0.1  # uniform in the logarithm
    assert choose_window(64, 96, crop=16, flip=False, min_scale=0.5, draw=None).height == 64


def test_a_bad_file_is_replaced_by_the_next_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    data = RestorationDataModule(train=Coordinates(6, bad=(1, 2)), crop=8, batch_size=6, flip=False)
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
        batches = first_batches(data, 3)
        data.teardown("fit")
    assert all(sorted(batch.key) == ["k0", "k3", "k3", "k3", "k4", "k5"] for batch in batches)
    lines = sorted(record.getMessage() for record in caplog.records)
    assert lines == ["bad image files left out: 2"] + [
        f"left out a bad image, /data/{index}.png: empty file (0 bytes)" for index in (1, 2)
    ]


def test_evaluation_skips_bad_files_and_does_not_vary() -> None:
    data = RestorationDataModule(
        val=Coordinates(7, bad=(0, 1, 4)), eval_degradation=noisy, eval_crop=8, eval_batch_size=2, seed=5
    )
    runs = [[data.degrade(b, stage="val") for b in data.val_dataloader()] for _ in range(2)]
    assert [batch.key for batch in runs[0]] == [("k2", "k3"), ("k5",), ("k6",)]
    assert all(same_batch(a, b) for a, b in zip(*runs, strict=True))
    assert runs[0][0].seed == (mix(5, "eval", "k2"), mix(5, "eval", "k3"))
    assert round(float(runs[0][0].hq_BCHW[0, 0, 0, 0] * 255)) == 6 and len(data.bad.lines) == 3


@pytest.mark.parametrize("stage", ["fit", "test", "predict"])
def test_a_source_without_good_files_stops_at_once(tmp_path: Path, stage: str) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("no image")
    source = FolderSource(tmp_path)
    with pytest.raises(ValueError, match=r"none of the 2 images can be read; the first: .*a\.png: text, not an image"):
        RestorationDataModule(train=source, test=source, predict=source).setup(stage)


def test_training_needs_hq_and_stages_need_sources(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="no HQ to learn from"):
        RestorationDataModule(train=FolderSource(tmp_path, role="lq")).setup("fit")
    with pytest.raises(ValueError, match="no source of test pictures"):
        RestorationDataModule().test_dataloader()


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_several_sizes_in_a_batch_are_refused_in_one_line(tmp_path: Path, workers: int) -> None:
    write_png(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    write_png(tmp_path / "b.png", np.zeros((8, 9, 3), np.uint8))
    data = RestorationDataModule(test=FolderSource(tmp_path), workers=workers)
    with pytest.raises(ValueError, match=r"^a is 8x8, b is 8x9: they cannot share a batch; set a crop"):
        next(iter(data.test_dataloader()))
    single = RestorationDataModule(test=FolderSource(tmp_path), eval_batch_size=1)
    assert [batch.hq_BCHW.shape[-1] for batch in single.test_dataloader()] == [8, 9]


def test_an_existing_lq_is_not_degraded_again() -> None:
    data = RestorationDataModule(train=Coordinates(3, paired=True), degradation=noisy, crop=8, batch_size=2)
    batch = first_batches(data, 1)[0]
    assert batch.recipe == (None, None) and torch.allclose(batch.lq_BCHW - batch.hq_BCHW, torch.tensor(100 / 255))


class Recorder(lightning.LightningModule):
    """Keeps what it is given; its one weight moves so that steps count."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[Batch] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen.append(batch)
        return self.weight * batch.lq_BCHW.mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert batch.lq_BCHW is not None and batch.recipe[0] is not None

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[str, ...]:
        assert batch.hq_BCHW is None and batch.recipe == (None,) * len(batch)
        return batch.key

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_trainer(steps: int, *, per_epoch: int | None = None) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu", max_steps=steps, accumulate_grad_batches=2, limit_train_batches=per_epoch, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, val_check_interval=2,
        check_val_every_n_epoch=None,
    )  # fmt: skip


def make_data(workers: int = 0) -> RestorationDataModule:
    source = Coordinates(5, bad=(3,))
    return RestorationDataModule(
        train=source, val=source, predict=source, degradation=noisy, eval_degradation=noisy, crop=8, eval_crop=8,
        batch_size=2, eval_batch_size=2, workers=workers,
    )  # fmt: skip


def test_a_resumed_run_reads_the_batches_of_an_unbroken_one(tmp_path: Path) -> None:
    unbroken, before, after = Recorder(), Recorder(), Recorder()
    make_trainer(6).fit(unbroken, datamodule=make_data())
    trainer = make_trainer(2)
    trainer.fit(before, datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    make_trainer(6).fit(after, datamodule=make_data(), ckpt_path=tmp_path / "half.ckpt")
    assert (len(unbroken.seen), len(before.seen), len(after.seen)) == (12, 4, 8)
    assert all(same_batch(a, b) for a, b in zip(unbroken.seen, before.seen + after.seen, strict=True))


def test_limited_epochs_continue_the_stream_and_prediction_takes_images_as_lq() -> None:
    unbroken, limited = Recorder(), Recorder()
    make_trainer(4).fit(unbroken, datamodule=make_data())
    trainer = make_trainer(4, per_epoch=4)
    trainer.fit(limited, datamodule=make_data())
    assert all(same_batch(a, b) for a, b in zip(unbroken.seen, limited.seen, strict=True))
    assert trainer.predict(limited, datamodule=make_data()) == [("k0", "k1"), ("k2",), ("k4",)]
