"""The LightningDataModule of all data: batches from sources, for train, validation, test and predict.

Training data is an endless stream that starts at the trainer's global step, so that a resumed run reads the samples of
an uninterrupted one. Batches without an LQ are degraded after the transfer to the device; for an XLA device, which
would compile a program per recipe, in the workers. Training images that are too small are excluded in `setup`
(survey.py); bad files are logged once each and counted at the end. Predict degrades nothing: an image is its own LQ.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from restore_lab.config.kinds import BatchSize, Pixels, Seed, Workers
from restore_lab.data.dataset import Ordered, RestorationDataset, Source, identity_collate, ignore_signals
from restore_lab.data.image_io import BadImage
from restore_lab.data.sampler import PositionSampler, SequentialSampler
from restore_lab.data.survey import BadFiles, report_enlarged, screen
from restore_lab.types import Batch, Recipe

log = logging.getLogger(__name__)
DataStage = Literal["train", "val", "test", "predict"]
STAGES: dict[str, tuple[DataStage, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}
BatchSampler = PositionSampler | SequentialSampler | list[list[tuple[int, int]]]


class Degradation(Protocol):
    """Maps HQ (BCHW in [0, 1]) and one seed per image to the LQ, of the same size, and its recipes."""

    def __call__(self, hq_BCHW: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Sequence[Recipe]]: ...


def apply_degradation(batch: Batch, degradation: Degradation) -> Batch:
    """The batch with LQ and recipes; unchanged if it has no HQ, or an LQ already."""
    if batch.lq_BCHW is not None or batch.hq_BCHW is None:
        return batch
    with torch.no_grad():
        lq_BCHW, recipes = degradation(batch.hq_BCHW, batch.seed)
    return replace(batch, lq_BCHW=lq_BCHW, recipe=tuple(recipes))


class Stream:
    """Batches of one dataset, prefetched by worker processes; bad files are recorded in `bad`."""

    def __init__(
        self, dataset: RestorationDataset, *, sampler: Callable[[], BatchSampler], workers: int, bad: BadFiles
    ) -> None:
        """`sampler` is called at the start of each iteration, and reads the trainer's global step then."""
        self._dataset = dataset
        self._sampler = sampler
        self._workers = workers
        self._bad = bad

    def __len__(self) -> int:
        """Number of batches of a finite stream (fewer are yielded if all files of one are bad); else a TypeError."""
        sampler = self._sampler()
        if isinstance(sampler, PositionSampler):
            raise TypeError("the training stream has no end")
        return len(sampler)

    def select(self, numbers: Sequence[int]) -> Stream:
        """The stream of the batches with these indices, of a finite stream."""
        batches = list(self._sampler())
        chosen = [batches[number] for number in numbers]
        return Stream(self._dataset, sampler=lambda: chosen, workers=self._workers, bad=self._bad)

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch in self.batches() if batch is not None)

    def batches(self) -> Iterator[Batch | None]:
        """The batches; None for a batch whose files are all bad."""
        loader = DataLoader(
            self._dataset,
            batch_sampler=self._sampler(),
            num_workers=self._workers,
            collate_fn=identity_collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=ignore_signals,
        )
        for result in loader:
            self._bad.note(result.bad, result.frames)
            if result.error:
                raise ValueError(result.error)
            yield result.batch


class RestorationDataModule(LightningDataModule):
    """Sources and degradations of a run as dataloaders."""

    def __init__(
        self,
        *,
        train: Source | None = None,
        val: Source | None = None,
        test: Source | None = None,
        predict: Source | None = None,
        degradation: Degradation | None = None,
        eval_degradation: Degradation | None = None,
        crop: Pixels | None = None,
        eval_crop: Pixels | None = None,
        min_size: Pixels | None = None,
        flip: bool = True,
        min_scale: float = 1.0,
        batch_size: BatchSize = 8,
        eval_batch_size: BatchSize = 8,
        workers: Workers = 0,
        seed: Seed = 0,
    ) -> None:
        """Set sources, degradations, crops and batch sizes.

        Args:
            train, val, test, predict: sources of images; None for none.
            degradation: of training batches without an LQ; None leaves them without (training of priors).
            eval_degradation: the same for val and test, with seeds from `seed` and the key only.
            crop: side of the random training crops in pixels; None for whole images.
            eval_crop: side of the central crops of val, test and predict; None for whole images.
            min_size: minimum shorter side of training images, in pixels; None upsamples all to the crop.
            flip: whether training samples are flipped horizontally with probability 0.5.
            min_scale: minimum of the random scale of a training image before the crop, in (0, 1].
            batch_size: global batch size in training, summed over processes.
            eval_batch_size: per process, for val, test and predict.
            workers: worker processes; samples do not depend on them.
            seed: of the run.
        """
        super().__init__()
        self._sources: dict[DataStage, Source | None] = {"train": train, "val": val, "test": test, "predict": predict}
        self._degradation = degradation
        self._eval_degradation = eval_degradation
        self._crops = {True: crop, False: eval_crop}
        self._min_size, self._screened = min_size, False
        self._flip, self._min_scale = flip, min_scale
        self._batch_size = batch_size
        self._eval_batch_size = eval_batch_size
        self._workers = workers
        self._seed = seed
        self.bad = BadFiles()

    def setup(self, stage: str) -> None:
        """Log the image sizes, and check that each source of this stage has a usable image.

        Raises:
            ValueError: if one has none, or the training images have no HQ.
        """
        for name in STAGES[stage]:
            source = self._sources[name]
            if source is not None:
                source = self._screen(source, name=name)
                has_hq = self._has_hq(source, name=name)
                if name == "train" and not has_hq:
                    raise ValueError("train: the pictures have no HQ to learn from; give a source with HQ (role=hq)")

    def teardown(self, stage: str) -> None:
        """Log how many files were bad."""
        if summary := self.bad.summary():
            log.warning("%s", summary)

    def train_dataloader(self) -> Stream:
        """The endless stream, from the trainer's global step on."""
        return self._stream("train")

    def train_batches(self, epochs: int) -> int:
        """Number of global batches in `epochs` passes over the training images."""
        return -(-epochs * len(self._sources["train"] or ()) // self._batch_size)

    def val_dataloader(self) -> Stream | list[Stream]:
        """All of `val`; an empty list without a source."""
        return self._stream("val") if self._sources["val"] is not None else []

    def test_dataloader(self) -> Stream:
        """All of `test`."""
        return self._stream("test")

    def test_count(self) -> int:
        """Number of batches in `test`."""
        return len(self.test_dataloader())

    def test_batches(self, numbers: Sequence[int]) -> Iterator[tuple[int, Batch | None]]:
        """Index and batch of some batches of `test`; None for a batch whose files are all bad."""
        yield from zip(numbers, self._stream("test").select(numbers).batches(), strict=True)

    def predict_dataloader(self) -> Stream:
        """All of `predict`."""
        return self._stream("predict")

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Degrade images without an LQ, on the batch's device."""
        if self.trainer is None or self.trainer.predicting:
            return self.degrade(batch, stage="predict")
        return self.degrade(batch, stage="train" if self.trainer.training else "val")

    def degrade(self, batch: Batch, *, stage: DataStage) -> Batch:
        """The batch with LQ and recipes; images that have an LQ keep it (see `dataset.collate`)."""
        if batch.hq_BCHW is None:
            return batch
        if batch.lq_BCHW is not None:
            blank = batch.lq_BCHW[:, 0, 0, 0].isnan().nonzero().flatten().tolist()
            rest = batch.select(blank)
            if rest is None:
                return batch
            return _merge(batch, self.degrade(replace(rest, lq_BCHW=None), stage=stage), blank)
        if stage == "predict":
            return replace(batch, hq_BCHW=None, lq_BCHW=batch.hq_BCHW)
        degradation = self._degradation if stage == "train" else self._eval_degradation
        return batch if degradation is None else apply_degradation(batch, degradation)

    def _stream(self, stage: DataStage) -> Stream:
        source = self._sources[stage]
        if source is None:
            raise ValueError(f"no source of {stage} pictures; give the data module one as {stage}")
        training = stage == "train"
        dataset = RestorationDataset(
            source,
            crop=self._crops[training],
            flip=self._flip,
            min_scale=self._min_scale,
            seed=self._seed,
            training=training,
            min_size=self._min_size if training else None,
            finish=self._worker_degradation(stage),
        )
        make = self._train_sampler if training else self._eval_sampler
        return Stream(dataset, sampler=lambda: make(source), workers=self._workers, bad=self.bad)

    def _worker_degradation(self, stage: DataStage) -> Callable[[Batch], Batch] | None:
        """The degradation to run in the workers: for an XLA device only."""
        degradation = self._degradation if stage == "train" else self._eval_degradation
        if self.trainer is None or stage == "predict" or degradation is None:
            return None
        xla = self.trainer.strategy.root_device.type == "xla"
        return partial(apply_degradation, degradation=degradation) if xla else None

    def _train_sampler(self, source: Source) -> PositionSampler:
        trainer: Any = self.trainer  # its overfit_batches is set outside its class
        rank, world = self._place()
        advances = trainer is not None and not trainer.overfit_batches  # which repeats the first batches every epoch
        batches = trainer.global_step * trainer.accumulate_grad_batches if trainer and advances else 0
        return PositionSampler(
            len(source),
            batch_size=self._batch_size,
            seed=self._seed,
            start=batches * self._batch_size,
            rank=rank,
            world=world,
            order=source.order if isinstance(source, Ordered) else None,
        )

    def _eval_sampler(self, source: Source) -> SequentialSampler:
        rank, world = self._place()
        lockstep = self.trainer is not None and getattr(self.trainer.strategy, "lockstep", False)
        if len(source) < world or lockstep:  # a process without samples could not join a collective: each reads all
            rank, world = 0, 1
        return SequentialSampler(len(source), batch_size=self._eval_batch_size, rank=rank, world=world)

    def _place(self) -> tuple[int, int]:
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)

    def _screen(self, source: Source, *, name: DataStage) -> Source:
        """The source, for training without images that are too small; screened once, at the first setup."""
        if name == "train" and not self._screened:
            screened = screen(source, name="train", crop=self._crops[True], min_size=self._min_size)
            self._sources["train"], self._screened = screened, True
            return screened
        if name != "train":
            report_enlarged(source, name=name, crop=self._crops[False])
        return source

    def _has_hq(self, source: Source, *, name: str) -> bool:
        """Whether the first readable image has an HQ."""
        bad: list[str] = []
        for index in range(len(source)):
            try:
                picture = source.read(index, epoch=0)
            except BadImage as error:
                bad.append(str(error))
                continue
            self.bad.note(bad)
            return picture.hq_HWC is not None
        first = f"; the first: {bad[0]}" if bad else ""
        raise ValueError(f"{name}: none of the {len(source)} images can be read{first}")


def _merge(batch: Batch, degraded: Batch, indices: Sequence[int]) -> Batch:
    """The batch with LQ and recipes of `degraded` at the given indices."""
    assert batch.lq_BCHW is not None and degraded.lq_BCHW is not None
    lq_BCHW, recipe = batch.lq_BCHW.clone(), list(batch.recipe)
    lq_BCHW[list(indices)] = degraded.lq_BCHW
    for index, own in zip(indices, degraded.recipe, strict=True):
        recipe[index] = own
    return replace(batch, lq_BCHW=lq_BCHW, recipe=tuple(recipe))
