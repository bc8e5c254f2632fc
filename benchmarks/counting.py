"""Bytes, floating-point operations and the device's matrix peak, for the benchmarks of speed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.alternating import clock
from restore_lab.inspection.memory_estimate import LiveStorages

SIDE = {"cuda": 8192, "cpu": 1024}  # of the matrices of the peak
MATMULS = 20


def held(modules: Iterable[nn.Module]) -> int:
    """Bytes of all parameters and buffers, each storage once."""
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


def peak(compute: Callable[[], Any], device: torch.device) -> int:
    """The most bytes alive at once of what `compute` makes: on CUDA the allocator's, else the storages torch makes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        compute()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with LiveStorages() as alive:
        compute()
    return alive.peak


def flops(compute: Callable[[], Any]) -> int:
    """Twice the multiply-accumulates of what `compute` does, backward pass included, by torch's counter; eager only."""
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product, the median of some."""
    side = SIDE[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    out: Tensor = a @ b
    taken = []
    for _ in range(MATMULS):
        start = clock(device)
        torch.matmul(a, b, out=out)
        taken.append(clock(device) - start)
    return 2 * side**3 / statistics.median(taken)
