"""The one data module: sources in, batches out, for train, validation, test and predict.

Training is an endless stream that starts where the trainer's step says, so a resumed run reads on as an unbroken one
would. The degradation runs on whole batches after their transfer, hence on the GPU where there is one, and only where
the LQ is absent; for an XLA device, which would compile every recipe anew, in the workers. Training images that are too
small are left out beforehand (survey.py); bad files are named once and counted at the end. In prediction nothing is
degraded: an image is its own LQ.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, Protocol

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from restore_lab.data.dataset import Ordered, RestorationDataset, Source, as_loaded, stays
from restore_lab.data.image_io import BadImage
from restore_lab.data.sampler import PositionSampler, SequentialSampler
from restore_lab.data.survey import BadFiles, report_enlarged, screen
from restore_lab.types import Batch, Recipe

log = logging.getLogger(__name__)
Stage = Literal["train", "val", "test", "predict"]
STAGES: dict[str, tuple[Stage, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}
Sampler = PositionSampler | SequentialSampler | list[list[tuple[int, int]]]


class Degradation(Protocol):
    """HQ (BCHW in [0, 1]) and one seed an image to LQ of the same size and the recipes that made it."""

    def __call__(self, hq_BCHW: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Sequence[Recipe]]: ...


def degraded(batch: Batch, degradation: Degradation) -> Batch:
    """The batch with its LQ and recipes; one without HQ, or with an LQ, comes back as it is."""
    if batch.lq_BCHW is not None or batch.hq_BCHW is None:
        return batch
    with torch.no_grad():
        lq_BCHW, recipes = degradation(batch.hq_BCHW, batch.seed)
    return replace(batch, lq_BCHW=lq_BCHW, recipe=tuple(recipes))


class Stream:
    """Batches of one dataset, read ahead by worker processes; what was bad is noted on the way."""

    def __init__(
        self, dataset: RestorationDataset, *, sampler: Callable[[], Sampler], workers: int, bad: BadFiles
    ) -> None:
        """`sampler` is called whenever an iteration starts, and so sees the trainer's step of that moment."""
        self._dataset = dataset
        self._sampler = sampler
        self._workers = workers
        self._bad = bad

    def __len__(self) -> int:
        """Batches, if the stream is finite (fewer come if all files of one are bad); TypeError if not."""
        sampler = self._sampler()
        if isinstance(sampler, PositionSampler):
            raise TypeError("the training stream has no end")
        return len(sampler)

    def only(self, numbers: Sequence[int]) -> Stream:
        """The stream of some batches of a finite one."""
        batches = list(self._sampler())
        chosen = [batches[number] for number in numbers]
        return Stream(self._dataset, sampler=lambda: chosen, workers=self._workers, bad=self._bad)

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch in self.each() if batch is not None)

    def each(self) -> Iterator[Batch | None]:
        """The batches, None for one of which all files are bad."""
        loader = DataLoader(
            self._dataset,
            batch_sampler=self._sampler(),
            num_workers=self._workers,
            collate_fn=as_loaded,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=stays,
        )
        for loaded in loader:
            self._bad.note(loaded.bad, loaded.frames)
            if loaded.error:
                raise ValueError(loaded.error)
            yield loaded.batch


class RestorationDataModule(LightningDataModule):
    """See the head of this file."""

    def __init__(
        self,
        *,
        train: Source | None = None,
        val: Source | None = None,
        test: Source | None = None,
        predict: Source | None = None,
        degradation: Degradation | None = None,
        eval_degradation: Degradation | None = None,
        crop: int | None = None,
        eval_crop: int | None = None,
        min_size: int | None = None,
        flip: bool = True,
        min_scale: float = 1.0,
        batch_size: int = 8,
        eval_batch_size: int = 8,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        """Put the sources together.

        Args:
            train: source of training pictures; likewise val, test, predict.
            degradation: makes the LQ of training batches that have none; None leaves it absent (priors need none).
            eval_degradation: the same for val and test, with seeds that depend on `seed` and the key alone.
            crop: side of the random training crops in pixels; None for whole images.
            eval_crop: side of the central crops of val, test and predict; None for whole images.
            min_size: shorter side, in pixels, below which training images are left out; None enlarges all to the crop.
            flip: whether half of the training samples are mirrored.
            min_scale: least share of its sides to which a training image is shrunk before it is cut, in (0, 1].
            batch_size: training samples in a batch, of all processes together.
            eval_batch_size: for val, test and predict; of one process.
            workers: processes that read ahead; they change nothing but the speed.
            seed: of the run.
        """
        super().__init__()
        self._sources: dict[Stage, Source | None] = {"train": train, "val": val, "test": test, "predict": predict}
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
        """Say how large the images are, and stop at once if a source of this stage has none that can be used.

        Raises:
            ValueError: so, or the training pictures have no HQ.
        """
        for name in STAGES[stage]:
            source = self._sources[name]
            if source is not None:
                source = self._look_at(source, name=name)
                hq_known = self._first_good(source, name=name)
                if name == "train" and not hq_known:
                    raise ValueError("train: the pictures have no HQ to learn from; give a source with HQ (role=hq)")

    def teardown(self, stage: str) -> None:
        """Report how many files were bad."""
        if summary := self.bad.summary():
            log.warning("%s", summary)

    def train_dataloader(self) -> Stream:
        """The endless stream from the trainer's present step on."""
        return self._stream("train")

    def train_batches(self, epochs: int) -> int:
        """Batches of all processes together in so many passes over the training images."""
        return -(-epochs * len(self._sources["train"] or ()) // self._batch_size)

    def val_dataloader(self) -> Stream | list[Stream]:
        """All of `val`, or nothing where there is none."""
        return self._stream("val") if self._sources["val"] is not None else []

    def test_dataloader(self) -> Stream:
        """All of `test`."""
        return self._stream("test")

    def test_count(self) -> int:
        """Batches of all of `test`."""
        return len(self.test_dataloader())

    def test_batches(self, numbers: Sequence[int]) -> Iterator[tuple[int, Batch | None]]:
        """Some batches of `test` by their numbers, None for one of which all files are bad."""
        yield from zip(numbers, self._stream("test").only(numbers).each(), strict=True)

    def predict_dataloader(self) -> Stream:
        """All of `predict`."""
        return self._stream("predict")

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Degrade what has no LQ, on the device where it now is."""
        if self.trainer is None or self.trainer.predicting:
            return self.degrade(batch, stage="predict")
        return self.degrade(batch, stage="train" if self.trainer.training else "val")

    def degrade(self, batch: Batch, *, stage: Stage) -> Batch:
        """The batch with its LQ and recipes; an image that has an LQ keeps it (some of a batch: collate)."""
        if batch.hq_BCHW is None:
            return batch
        if batch.lq_BCHW is not None:
            blank = batch.lq_BCHW[:, 0, 0, 0].isnan().nonzero().flatten().tolist()
            rest = batch.select(blank)
            if rest is None:
                return batch
            return _joined(batch, self.degrade(replace(rest, lq_BCHW=None), stage=stage), blank)
        if stage == "predict":
            return replace(batch, hq_BCHW=None, lq_BCHW=batch.hq_BCHW)
        degradation = self._degradation if stage == "train" else self._eval_degradation
        return batch if degradation is None else degraded(batch, degradation)

    def _stream(self, stage: Stage) -> Stream:
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
            finish=self._early(stage),
        )
        make = self._train_sampler if training else self._eval_sampler
        return Stream(dataset, sampler=lambda: make(source), workers=self._workers, bad=self.bad)

    def _early(self, stage: Stage) -> Callable[[Batch], Batch] | None:
        """What the workers do to a batch: degrade it where an XLA device waits for it."""
        degradation = self._degradation if stage == "train" else self._eval_degradation
        if self.trainer is None or stage == "predict" or degradation is None:
            return None
        xla = self.trainer.strategy.root_device.type == "xla"
        return partial(degraded, degradation=degradation) if xla else None

    def _train_sampler(self, source: Source) -> PositionSampler:
        trainer, (rank, world) = self.trainer, self._place()
        moves = trainer is not None and not trainer.overfit_batches  # else the first batches come in every epoch
        batches = trainer.global_step * trainer.accumulate_grad_batches if trainer and moves else 0
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
        if len(source) < world or lockstep:  # a process without a share could not join the others: each takes all
            rank, world = 0, 1
        return SequentialSampler(len(source), batch_size=self._eval_batch_size, rank=rank, world=world)

    def _place(self) -> tuple[int, int]:
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)

    def _look_at(self, source: Source, *, name: Stage) -> Source:
        """The source, of training images without those that are too small; once, however often Lightning sets up."""
        if name == "train" and not self._screened:
            screened = screen(source, name="train", crop=self._crops[True], min_size=self._min_size)
            self._sources["train"], self._screened = screened, True
            return screened
        if name != "train":
            report_enlarged(source, name=name, crop=self._crops[False])
        return source

    def _first_good(self, source: Source, *, name: str) -> bool:
        """Whether the first readable picture has a HQ."""
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


def _joined(batch: Batch, made: Batch, places: Sequence[int]) -> Batch:
    """The batch with the LQ and recipes of those that have just been degraded."""
    assert batch.lq_BCHW is not None and made.lq_BCHW is not None
    lq_BCHW, recipe = batch.lq_BCHW.clone(), list(batch.recipe)
    lq_BCHW[list(places)] = made.lq_BCHW
    for place, own in zip(places, made.recipe, strict=True):
        recipe[place] = own
    return replace(batch, lq_BCHW=lq_BCHW, recipe=tuple(recipe))
