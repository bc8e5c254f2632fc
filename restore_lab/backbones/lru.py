"""A least-recently-used cache of tensors, bounded in bytes.

The text encoders use it, because captions and instructions repeat between steps. The bound is in bytes, because one
text takes 40 kB for the toy and 630 kB for SDXL.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from torch import Tensor


class TensorLRU:
    """Tuples of tensors by key; the least recently used are dropped first.

    Args:
        max_bytes: maximum size of all tensors together; 0 stores nothing.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._entries: OrderedDict[Hashable, tuple[Tensor, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> tuple[Tensor, ...] | None:
        """The tensors of the key, marked as most recently used; None if they are missing."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: Hashable, tensors: tuple[Tensor, ...]) -> None:
        """Store the tensors; drop the least recently used entries until all fit."""
        self._drop(key)
        self._entries[key] = tensors
        self.bytes += _size(tensors)
        while self.bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        """Drop all entries."""
        self._entries.clear()
        self.bytes = 0

    def _drop(self, key: Hashable) -> None:
        self.bytes -= _size(self._entries.pop(key, ()))


def _size(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
