"""pyiqa's metrics without weights: FSIM, GMSD, VIF, VSI against a reference, PIQE without one.

Their input is the whole RGB image in [0, 1] after the protocol's rounding (GMSD, FSIM, VSI convert to luma themselves).
Nothing is upsampled: an image below `min_size` has no value, and one line is logged. All five run at 64x64 and 128x128
(minimum with pyiqa 0.1.16: VIF 33, PIQE one block of 16). pyiqa is optional, as its licence is non-commercial; the
error without it names the extra `iqa`.
Config: metrics=offline; {_target_: restore_lab.evaluation.metrics.pyiqa.PyiqaMetric, name: gmsd}
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from restore_lab.evaluation.protocol import ImageMetric, MetricUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch's environment variable
# Errors that pyiqa raises for images that it cannot process; any other is a bug here.
PROBLEMS = (OSError, RuntimeError, ValueError, KeyError, ImportError, AssertionError)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Properties of a pyiqa metric: direction, whether it needs a reference, minimum image side in pixels."""

    higher_is_better: bool
    needs_reference: bool
    min_size: int


WEIGHTLESS: Mapping[str, Facts] = {
    "fsim": Facts(higher_is_better=True, needs_reference=True, min_size=16),
    "gmsd": Facts(higher_is_better=False, needs_reference=True, min_size=16),
    "vif": Facts(higher_is_better=True, needs_reference=True, min_size=33),
    "vsi": Facts(higher_is_better=True, needs_reference=True, min_size=16),
    "piqe": Facts(higher_is_better=False, needs_reference=False, min_size=16),
}


def pyiqa_missing(metric: str) -> str:
    """One line if pyiqa is not installed, else empty; does not import it."""
    if importlib.util.find_spec("pyiqa") is not None:
        return ""
    return f"{metric}: pyiqa is not installed; install the extra: pip install 'restore-lab[iqa]'"


@contextlib.contextmanager
def sandbox() -> Iterator[None]:
    """Keep pyiqa from downloading, from unpickling code in weight files, and from writing to stdout.

    It loads weights with `weights_only=False`, which torch's environment variable overrides within this context.
    """
    from huggingface_hub import constants

    offline, forced = constants.HF_HUB_OFFLINE, os.environ.get(WEIGHTS_ONLY)
    constants.HF_HUB_OFFLINE, os.environ[WEIGHTS_ONLY] = True, "1"
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        if forced is None:
            del os.environ[WEIGHTS_ONLY]
        else:
            os.environ[WEIGHTS_ONLY] = forced


class PyiqaBased(ImageMetric):
    """A pyiqa metric, created at its first call on the image's device."""

    def __init__(self, *, name: str, facts: Facts, column: str | None = None) -> None:
        self.name, self.id = name, column or name
        self.higher_is_better = facts.higher_is_better
        self.needs_reference = facts.needs_reference
        self.min_size = facts.min_size
        self._network: Callable[..., Tensor] | None = None
        self._device: torch.device | None = None

    def missing(self) -> str:
        return pyiqa_missing(self.id)

    def source(self) -> str:
        """Code and weights, for the column's `weights`."""
        return f"pyiqa {version('pyiqa')}"

    def __call__(self, restored_BCHW: Tensor, reference_BCHW: Tensor | None, captions: Sequence[str] | None) -> Tensor:
        if self.needs_reference and reference_BCHW is None:
            raise ValueError(f"{self.id} compares with a reference and got none; leave it out for images without one")
        metric = self._metric(restored_BCHW.device)
        images = (restored_BCHW, reference_BCHW) if self.needs_reference else (restored_BCHW,)
        try:
            with sandbox():
                values = metric(*images)
        except PROBLEMS as error:
            height, width = restored_BCHW.shape[-2:]
            raise MetricUnavailable(f"{self.id}: pyiqa failed on {width}x{height} images: {_line(error)}") from error
        return values.detach().reshape(-1)

    def _metric(self, device: torch.device) -> Callable[..., Tensor]:
        """The network on this device.

        Raises:
            MetricUnavailable: if pyiqa or its weights are missing, or damaged.
        """
        if self._network is None or self._device != device:
            gap = self.missing()
            if gap:
                raise MetricUnavailable(gap)
            try:
                with sandbox():
                    import pyiqa
                    from pyiqa.utils.logger import get_root_logger

                    # The first call sets the level; pyiqa logs two lines per metric.
                    get_root_logger().setLevel(logging.WARNING)
                    self._network = pyiqa.create_metric(self.name, device=device)
            except Exception as error:  # readers of damaged files raise errors of any type
                raise MetricUnavailable(f"{self.id}: pyiqa cannot set it up: {_line(error)}") from error
            self._device = device
            self.weights = self.source()
        return self._network


class PyiqaMetric(PyiqaBased):
    """One of `WEIGHTLESS`, by pyiqa's name.

    Raises:
        ValueError: for an unknown name.
    """

    def __init__(self, *, name: str) -> None:
        if name not in WEIGHTLESS:
            raise ValueError(f"pyiqa metric {name!r} is not one that needs no weights; choose {', '.join(WEIGHTLESS)}")
        super().__init__(name=name, facts=WEIGHTLESS[name])


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
