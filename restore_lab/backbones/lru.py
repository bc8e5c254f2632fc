"""A bounded least-recently-used store for tensors.

Serves the text encoders: captions and instructions repeat from step to step, and an endless stream of captions must
not fill the memory. Bounded by bytes, because one text is 40 kB for the toy and 630 kB for SDXL.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from torch import Tensor


class TensorLRU:
    """Tuples of tensors under a key; the ones not asked for longest leave first.

    Args:
        max_bytes: what all stored tensors together may take; 0 stores nothing.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._entries: OrderedDict[Hashable, tuple[Tensor, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> tuple[Tensor, ...] | None:
        """The tensors under the key, which then counts as used just now, or None."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: Hashable, tensors: tuple[Tensor, ...]) -> None:
        """Store the tensors; drop the oldest entries until all fit."""
        self._drop(key)
        self._entries[key] = tensors
        self.bytes += _size(tensors)
        while self.bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.bytes = 0

    def _drop(self, key: Hashable) -> None:
        self.bytes -= _size(self._entries.pop(key, ()))


def _size(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
