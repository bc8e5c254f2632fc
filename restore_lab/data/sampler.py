"""Batch samplers whose samples depend only on the position in the stream.

Position p of the training stream is epoch p // N and index order(seed, epoch)[p % N], so that the number of samples
consumed is all that an exact resume needs. A global batch is `batch_size` consecutive positions; each rank takes every
`world`-th of them, so that batches do not depend on the number of processes. Both samplers yield lists of
(epoch, index), one list per batch of this process.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Protocol

import numpy as np

from restore_lab.random import rng


class Order(Protocol):
    """A permutation of the indices for an epoch."""

    def __call__(self, *, seed: int, epoch: int) -> np.ndarray: ...


def permutation(length: int, *, seed: int, epoch: int) -> np.ndarray:
    """A random permutation of 0 to length - 1."""
    return rng(seed, "order", epoch).permutation(length)


class PositionSampler:
    """The endless shuffled stream for training."""

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        order: Order | None = None,
    ) -> None:
        """Set one rank's part of the stream.

        Args:
            length: N, the source's length.
            batch_size: global batch size, summed over ranks.
            seed: of the order.
            start: samples already consumed, summed over ranks.
            rank: of this process, below `world`.
            world: number of processes.
            order: of an epoch; None for a random permutation.

        Raises:
            ValueError: a number is out of range, or a batch does not divide among the ranks.
        """
        if length < 1 or batch_size < 1 or start < 0 or not 0 <= rank < world:
            numbers = f"length={length}, batch_size={batch_size}, start={start}, rank={rank}, world={world}"
            raise ValueError(f"{numbers}: expected length, batch_size >= 1, start >= 0 and 0 <= rank < world")
        if batch_size % world:
            raise ValueError(
                f"batch_size={batch_size} does not divide among {world} processes, whose samples it counts all "
                f"together; choose a multiple of {world}, or another trainer.devices"
            )
        self._length = length
        self._batch_size = batch_size
        self._seed = seed
        self._start = start
        self._rank = rank
        self._world = world
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)
        self._make = order or partial(permutation, length)

    def at(self, position: int) -> tuple[int, int]:
        """(epoch, index) at a position of the stream."""
        epoch, place = divmod(position, self._length)
        if epoch != self._epoch:
            self._order = self._make(seed=self._seed, epoch=epoch)
            self._epoch = epoch
        return epoch, int(self._order[place])

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        position = self._start
        while True:
            yield [self.at(position + slot) for slot in range(self._rank, self._batch_size, self._world)]
            position += self._batch_size


class SequentialSampler:
    """Every image once, in order, for validation, test and prediction; ranks have disjoint samples."""

    def __init__(self, length: int, *, batch_size: int, rank: int = 0, world: int = 1) -> None:
        """Arguments as in `PositionSampler`, except that `batch_size` is per rank.

        Raises:
            ValueError: a number is out of range.
        """
        if batch_size < 1 or not 0 <= rank < world:
            raise ValueError(
                f"batch_size={batch_size}, rank={rank}, world={world}: expected >= 1 and 0 <= rank < world"
            )
        self._indices = range(rank, length, world)
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._indices) // self._batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for first in range(0, len(self._indices), self._batch_size):
            yield [(0, index) for index in self._indices[first : first + self._batch_size]]
