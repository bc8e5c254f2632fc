"""Samples of a source as tensors, and their collation to a `Batch`.

A source reads images by index. The dataset maps a position (epoch, index) to a sample whose crop and flip depend only
on (seed, epoch, index), not on workers, ranks or batches. In training a bad file is replaced by the next good index; in
evaluation crops are central, seeds come from the key, and bad files are skipped. Bad files are reported to the main
process with the batch, which logs each once. Shapes: CHW float32 in [0, 1].
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from restore_lab.data.frames import take_frames
from restore_lab.data.image_io import BadImage, Header, resize_image, to_tensor
from restore_lab.random import mix, rng
from restore_lab.types import Batch, Picture, Recipe

Result = TypeVar("Result")


class Source(Protocol):
    """Images by index; `read` raises `BadImage` for a file that cannot be read."""

    def __len__(self) -> int: ...

    def keys(self) -> list[str]: ...

    def read(self, index: int, *, epoch: int) -> Picture: ...


@runtime_checkable
class Ordered(Protocol):
    """A source that defines the order of its samples in an epoch (a permutation of the indices)."""

    def order(self, *, seed: int, epoch: int) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image or pair as tensors; `bad` has the errors of the files that it replaces."""

    hq_CHW: Tensor | None
    lq_CHW: Tensor | None
    caption: str
    key: str
    seed: int
    bad: tuple[str, ...] = ()
    recipe: Recipe | None = None


@dataclass(frozen=True, kw_only=True)
class WorkerResult:
    """What a worker returns: a batch (None if all its files are bad), bad files, frames (frames.py), an error."""

    batch: Batch | None
    bad: tuple[str, ...] = ()
    frames: Mapping[str, int] = field(default_factory=dict)
    error: str = ""

    def pin_memory(self) -> WorkerResult:
        """The same in pinned memory; called by the DataLoader."""
        if self.batch is None:
            return self
        hq, lq = self.batch.hq_BCHW, self.batch.lq_BCHW
        pinned = replace(
            self.batch,
            hq_BCHW=None if hq is None else hq.pin_memory(),
            lq_BCHW=None if lq is None else lq.pin_memory(),
        )
        return replace(self, batch=pinned)


@dataclass(frozen=True, kw_only=True)
class Window:
    """A crop: resize to height x width, crop a square of `side` at (top, left), then flip if `mirrored`."""

    height: int
    width: int
    top: int = 0
    left: int = 0
    side: int | None = None
    mirrored: bool = False


class RestorationDataset(Dataset[Sample]):
    """Samples of one source by position (epoch, index)."""

    def __init__(
        self,
        source: Source,
        *,
        crop: int | None,
        flip: bool,
        seed: int,
        min_scale: float = 1.0,
        training: bool = True,
        min_size: int | None = None,
        finish: Callable[[Batch], Batch] | None = None,
    ) -> None:
        """Set the source and its crops.

        Args:
            source: of images.
            crop: side of the square crop in pixels; smaller images are upsampled first; None for whole images.
            flip: whether training samples are flipped horizontally with probability 0.5.
            seed: of the run.
            min_scale: minimum of the random scale of a training image before the crop (log-uniform up to 1, at least
                the scale at which the crop fits); 1 for no scaling.
            training: random crops, bad files replaced; else central crops, bad files skipped.
            min_size: an image with a shorter side below this, in pixels, counts as a bad file; None for no limit.
            finish: transform of each batch, run in the worker; None for none.
        """
        self._source, self._finish, self._min_size = source, finish, min_size
        self._crop = crop
        self._flip = flip
        self._seed = seed
        self._min_scale = min_scale
        self._training = training
        self._known_bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, position: tuple[int, int]) -> Sample:
        """The sample at (epoch, index); in training of the next good index if that one is bad.

        Raises:
            BadImage: the file is bad (evaluation), or all are (training).
            ValueError: the source's LQ and HQ differ in size.
        """
        epoch, index = position
        if not self._training:
            picture = self._read(index, epoch)
            return self._sample(picture, draw=None, seed=mix(self._seed, "eval", picture.key), bad=())
        picture, bad = self._next_good(index, epoch)
        draw = rng(self._seed, epoch, index)
        return self._sample(picture, draw=draw, seed=mix(self._seed, epoch, index), bad=bad)

    def __getitems__(self, positions: Sequence[tuple[int, int]]) -> WorkerResult:
        """One batch; called by the DataLoader in a worker, which returns errors as values."""
        samples: list[Sample] = []
        bad: list[str] = []
        try:
            for position in positions:
                try:
                    samples.append(self[position])
                    bad.extend(samples[-1].bad)
                except BadImage as error:
                    if self._training:
                        raise
                    bad.append(str(error))
            batch = collate(samples) if samples else None
            batch = batch if batch is None or self._finish is None else self._finish(batch)
            return WorkerResult(batch=batch, bad=tuple(bad), frames=take_frames())
        except BadImage as error:  # in training: no file can be read any more
            more = "; bring them back: the same command continues from its last checkpoint"
            return WorkerResult(batch=None, bad=tuple(bad), error=f"{error}{more}")
        except ValueError as error:
            return WorkerResult(batch=None, bad=tuple(bad), error=str(error))
        except OSError as error:
            return WorkerResult(batch=None, bad=tuple(bad), error=f"{error.filename}: {error.strerror or error}")

    def _read(self, index: int, epoch: int) -> Picture:
        if index in self._known_bad:
            raise BadImage(self._known_bad[index])
        try:
            picture = self._source.read(index, epoch=epoch)
            image_HWC = picture.lq_HWC if picture.hq_HWC is None else picture.hq_HWC
            if self._min_size is not None and image_HWC is not None and min(image_HWC.shape[:2]) < self._min_size:
                height, width = image_HWC.shape[:2]
                raise BadImage(f"{picture.key}: {width}x{height} pixels, below min_size={self._min_size}")
            return picture
        except BadImage as error:
            self._known_bad[index] = str(error)
            raise

    def _next_good(self, index: int, epoch: int) -> tuple[Picture, tuple[str, ...]]:
        bad: list[str] = []
        for step in range(len(self._source)):
            try:
                return self._read((index + step) % len(self._source), epoch), tuple(bad)
            except BadImage as error:
                bad.append(str(error))
        raise BadImage(f"none of the {len(self._source)} images can be read; the first: {bad[0]}")

    def _sample(self, picture: Picture, *, draw: np.random.Generator | None, seed: int, bad: tuple[str, ...]) -> Sample:
        images = [image for image in (picture.hq_HWC, picture.lq_HWC) if image is not None]
        if not images or images[0].shape != images[-1].shape:
            raise ValueError(
                f"{picture.key}: {[i.shape for i in images]}; a source must give HQ and LQ of one size, or one"
            )
        window = choose_window(
            *images[0].shape[:2], crop=self._crop, flip=self._flip, min_scale=self._min_scale, draw=draw
        )
        return Sample(
            hq_CHW=None if picture.hq_HWC is None else to_tensor(apply_window(picture.hq_HWC, window)),
            lq_CHW=None if picture.lq_HWC is None else to_tensor(apply_window(picture.lq_HWC, window)),
            caption=picture.caption,
            key=picture.key,
            seed=seed,
            bad=bad,
            recipe=picture.recipe,
        )


def header_of(source: Source, index: int) -> Header | None:
    """The size of a source's image, without decoding it; None if the source has no `header`.

    Raises:
        BadImage: the file cannot be read.
    """
    # Not isinstance with a Protocol, which takes 20 microseconds: this runs for every image of a source.
    header: Callable[[int], Header | None] | None = getattr(source, "header", None)
    return None if header is None else header(index)


def ignore_signals(worker: int) -> None:
    """Make a worker ignore SIGINT and the first SIGTERM, which a job's scheduler sends to all its processes.

    The main process still needs a batch to finish its step; then it ends the workers, if need be by a second SIGTERM.
    """

    def ignore_first(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, ignore_first)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def identity_collate(result: Result) -> Result:
    """The identity: `__getitems__` collates. A module-level function, since the DataLoader pickles it."""
    return result


def choose_window(
    height: int,
    width: int,
    *,
    crop: int | None,
    flip: bool,
    draw: np.random.Generator | None,
    min_scale: float = 1.0,
) -> Window:
    """A random window from the generator `draw`; if it is None the central one, without scaling or flip."""
    mirrored = bool(draw.random() < 0.5) if flip and draw is not None else False
    if crop is None:
        return Window(height=height, width=width, mirrored=mirrored)
    fit = crop / min(height, width)  # the scale at which the short side equals the crop
    ratio = max(1.0, fit)
    if draw is not None and min_scale < 1.0 and fit < 1.0:
        ratio = max(min_scale, fit) ** draw.random()
    height, width = max(crop, round(height * ratio)), max(crop, round(width * ratio))
    if draw is None:
        top, left = (height - crop) // 2, (width - crop) // 2
    else:
        top, left = int(draw.integers(height - crop + 1)), int(draw.integers(width - crop + 1))
    return Window(height=height, width=width, top=top, left=left, side=crop, mirrored=mirrored)


def apply_window(image_HWC: np.ndarray, window: Window) -> np.ndarray:
    """Resize, crop and flip an image (uint8 HWC) by a window."""
    image_HWC = resize_image(image_HWC, height=window.height, width=window.width)
    if window.side is not None:
        image_HWC = image_HWC[window.top : window.top + window.side, window.left : window.left + window.side]
    return image_HWC[:, ::-1] if window.mirrored else image_HWC


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a batch; only labelled pairs have recipes.

    In a batch with labelled pairs other images may lack an LQ: theirs is NaN until the data module degrades them.

    Raises:
        ValueError: they differ in size, or only some have an HQ (or an LQ).
    """
    if all((sample.lq_CHW is None) == (sample.recipe is None) for sample in samples):
        shaped = next((sample.lq_CHW for sample in samples if sample.lq_CHW is not None), None)
        blank_CHW = None if shaped is None else torch.full_like(shaped, torch.nan)
        samples = [replace(sample, lq_CHW=blank_CHW) if sample.lq_CHW is None else sample for sample in samples]
    return Batch(
        hq_BCHW=_stack([(sample.key, sample.hq_CHW) for sample in samples], what="HQ"),
        lq_BCHW=_stack([(sample.key, sample.lq_CHW) for sample in samples], what="LQ"),
        caption=tuple(sample.caption for sample in samples),
        key=tuple(sample.key for sample in samples),
        seed=tuple(sample.seed for sample in samples),
        recipe=tuple(sample.recipe for sample in samples),
    )


def _stack(images: Sequence[tuple[str, Tensor | None]], *, what: str) -> Tensor | None:
    present = [(key, image) for key, image in images if image is not None]
    if not present:
        return None
    if len(present) < len(images):
        alone = next(key for key, image in images if image is None)
        raise ValueError(
            f"{alone} has no {what}, {present[0][0]} has one: they cannot share a batch; set the batch size to 1"
        )
    first_key, first = present[0]
    for key, image in present:
        if image.shape != first.shape:
            sizes = f"{first_key} is {first.shape[1]}x{first.shape[2]}, {key} is {image.shape[1]}x{image.shape[2]}"
            raise ValueError(f"{sizes}: they cannot share a batch; set a crop, or the batch size to 1")
    return torch.stack([image for _, image in present])
