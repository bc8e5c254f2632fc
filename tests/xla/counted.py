"""Counts XLA's work: programs compiled, and operations left to the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch_xla
from torch_xla.debug import metrics

# torch-xla lowers these on TPUs alone and leaves them to the host elsewhere (DRA's stream between its levels).
ON_TPUS = {"aten::upsample_bilinear2d", "aten::upsample_bilinear2d_backward"}

# UniPC solves two equations in a step, made of times alone, which XLA leaves to the host.
SOLVES = {"aten::_linalg_solve_ex", "aten::_local_scalar_dense"}


@dataclass(frozen=True, kw_only=True)
class Spent:
    """One call: programs compiled, host operations by name, reads from the device, and what it gave."""

    compiled: int
    on_host: set[str]
    reads: int
    result: Any


def spent(work: Callable[[], Any]) -> Spent:
    """Run, wait, and count."""
    before = _counts()
    result = work()
    torch_xla.sync(wait=True)
    after = _counts()
    changed = {name for name, value in after.items() if value != before.get(name, 0)}
    return Spent(
        compiled=after["CompileTime"] - before["CompileTime"],
        on_host={name for name in changed if name.startswith("aten::")},
        reads=after["TransferFromDeviceTime"] - before["TransferFromDeviceTime"],
        result=result,
    )


def _counts() -> dict[str, int]:
    timed = {name: (metrics.metric_data(name) or [0])[0] for name in ("CompileTime", "TransferFromDeviceTime")}
    return timed | {name: metrics.counter_value(name) for name in metrics.counter_names()}
