"""A source of pictures whose pixels hold their coordinates, a degradation by noise, and batches of the two."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from restore_lab.data.datamodule import RestorationDataModule
from restore_lab.data.image_io import BadImage
from restore_lab.random import generator
from restore_lab.types import Batch, Picture, Recipe


@dataclass(frozen=True)
class Coordinates:
    """Pictures whose pixels hold their coordinates: red the row, green the column, blue the index."""

    count: int
    height: int = 20
    width: int = 24
    bad: tuple[int, ...] = ()
    paired: bool = False

    def __len__(self) -> int:
        return self.count

    def keys(self) -> list[str]:
        return [f"k{index}" for index in range(self.count)]

    def read(self, index: int, *, epoch: int) -> Picture:
        if index in self.bad:
            raise BadImage(f"/data/{index}.png: empty file (0 bytes)")
        rows, columns = np.mgrid[: self.height, : self.width]
        hq_HWC = np.stack([rows, columns, np.full_like(rows, index)], axis=2).astype(np.uint8)
        lq_HWC = hq_HWC + np.uint8(100) if self.paired else None
        return Picture(hq_HWC=hq_HWC, lq_HWC=lq_HWC, caption=f"picture {index}", key=f"k{index}")


def noisy(hq_BCHW: Tensor, seeds: Sequence[int]) -> tuple[Tensor, list[Recipe]]:
    """A degradation: uniform noise from each image's seed."""
    noise = [torch.rand(hq.shape, generator=generator(seed)) for hq, seed in zip(hq_BCHW, seeds, strict=True)]
    return hq_BCHW + torch.stack(noise), [Recipe(pipeline="noisy", seed=seed) for seed in seeds]


def first_batches(data: RestorationDataModule, count: int) -> list[Batch]:
    """The first training batches."""
    return [data.degrade(b, stage="train") for b in itertools.islice(iter(data.train_dataloader()), count)]


def same_batch(one: Batch, two: Batch) -> bool:
    """Whether two batches are equal bit for bit."""
    images = [(one.hq_BCHW, two.hq_BCHW), (one.lq_BCHW, two.lq_BCHW)]
    rest = (one.caption, one.key, one.seed, one.recipe) == (two.caption, two.key, two.seed, two.recipe)
    return rest and all(torch.equal(a, b) for a, b in images)
