"""Equal up to rounding, and kernels that round as those of some processor do.

Floating-point sums depend on their order, and a processor chooses the order by what it is given: the shapes (an image
alone, or in a batch), how the tensors lie in memory, whether gradients are wanted. So a test may ask for the same bits
only of the same tensors on the same path, and for `close` otherwise. That it does not ask for more is seen on every
machine: in tests, layers round by those facts (`as_elsewhere`, for all tests in conftest.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

LAYERS = ("linear", "conv1d", "conv2d", "conv_transpose2d")
# Of the largest value. A toy network's sums of up to some thousand float32 terms (eps 1.2e-7), thirty layers deep and
# a few steps long, differ by up to 1e-5 between kernels; a part that is missing or doubled differs by 1e-3 and more.
TOLERANCE = 5e-5


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are equal up to rounding: of one shape, and nowhere further apart than `TOLERANCE`."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    apart, largest = (found - expected).abs().max(), expected.abs().max()
    return bool(apart <= TOLERANCE * largest)


def same_levels(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Whether two images of 8-bit levels are equal up to rounding: nowhere further apart than one level."""
    return found.shape == expected.shape and int(np.abs(found.astype(int) - expected.astype(int)).max()) <= 1


@contextmanager
def as_elsewhere() -> Iterator[None]:
    """Layers whose last bits depend on shapes, strides and gradients, as on one processor or another they do."""
    with ExitStack() as stack:
        for name in LAYERS:
            stack.enter_context(patch.object(F, name, _rounding(getattr(F, name))))
        yield


def _rounding(layer: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(layer)
    def call(input: Tensor, weight: Tensor, *args: object, **settings: object) -> Tensor:  # noqa: A002 - torch's name
        out = layer(input, weight, *args, **settings)
        if torch.compiler.is_compiling() or type(weight) is not nn.Parameter or not out.dtype.is_floating_point:
            return out  # compiled code has kernels of its own
        if out.is_meta:
            return out  # it has a size and no bits: rounding would only be one more tensor where memory is counted
        wants_gradients = weight.requires_grad and torch.is_grad_enabled()
        path = hash((*weight.shape, *weight.stride(), *input.shape, *input.stride(), wants_gradients))
        return out * (1 + (path % 5 - 2) * torch.finfo(out.dtype).eps)

    return call
