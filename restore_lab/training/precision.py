"""`precision=bf16-true`: bf16-mixed with trainable parameters, gradients and moments in bfloat16 too.

It halves the memory of training. Lightning's plugin of that name also casts images, noise and timesteps to bfloat16,
which cannot tell t = 999 from 1000; here these stay in float32, as do frozen parameters. bfloat16 has 8 significant
bits, so an update of less than 1/512 of a weight is lost: it is for testing what fits, not for long trainings.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.plugins.precision import Precision

from restore_lab.methods.trainable import trainable_parameters

if TYPE_CHECKING:
    from torch import nn


class TrueBFloat16(Precision):
    """Casts the trainable parameters, and runs the forward pass under autocast."""

    precision: Any = "bf16-true"

    def convert_module(self, module: nn.Module) -> nn.Module:
        for p in trainable_parameters(module).values():
            p.data = p.data.to(torch.bfloat16)
        self.module = module
        return module

    @contextmanager
    def forward_context(self) -> Generator[None]:
        device = next(self.module.parameters()).device
        with torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False):
            yield


def apply_precision(trainer: Mapping[str, Any], *, average: bool, plugins: Sequence[Any]) -> dict[str, Any]:
    """A stage's trainer settings with `precision=bf16-true` replaced by the plugin.

    Args:
        trainer: the settings.
        average: whether the stage averages its weights.
        plugins: the other plugins.

    Raises:
        ValueError: for float16 weights, or bfloat16 weights with an average.
    """
    precision = trainer.get("precision")
    if precision == "16-true":
        raise ValueError(
            "precision=16-true: gradients vanish in float16 weights; one of bf16-true, bf16-mixed, 32-true"
        )
    if precision != "bf16-true":
        return {**trainer, "plugins": [*plugins]}
    if average:
        raise ValueError("precision=bf16-true: an average in bfloat16 would stand still; set ema=null")
    return {**trainer, "precision": None, "plugins": [*plugins, TrueBFloat16()]}
