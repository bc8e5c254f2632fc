"""`precision=bf16-true`: as bf16-mixed, but what is trained, its gradients and moments are in bfloat16 too.

Half of training's memory. Lightning's own plugin of that name would also put images, noise and timesteps into bfloat16,
which cannot tell t = 999 from 1000; here they stay in float32, as does what is frozen. bfloat16 has 8 bits: a step of
less than 1/512 of a weight changes nothing, so that it suits a look whether something fits better than a long training.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.plugins.precision import Precision

if TYPE_CHECKING:
    from restore_lab.training.module import TrainingModule


class TrueBfloat16(Precision):
    """Casts what is trained, and computes under autocast."""

    precision: Any = "bf16-true"

    def convert_module(self, module: TrainingModule) -> TrainingModule:  # type: ignore[override]
        for p in module.trainable().values():
            p.data = p.data.to(torch.bfloat16)
        self.module = module
        return module

    @contextmanager
    def forward_context(self) -> Generator[None]:
        with torch.autocast(self.module.device.type, dtype=torch.bfloat16, cache_enabled=False):
            yield


def with_precision(trainer: Mapping[str, Any], *, average: bool, plugins: Sequence[Any]) -> dict[str, Any]:
    """A stage's trainer settings as Lightning takes them.

    Args:
        trainer: the settings, `precision` among them.
        average: whether an average of the weights is kept.
        plugins: others that Lightning is given.

    Raises:
        ValueError: for float16 weights, or bfloat16 ones with an average.
    """
    word = trainer.get("precision")
    if word == "16-true":
        raise ValueError(
            "precision=16-true: gradients vanish in float16 weights; one of bf16-true, bf16-mixed, 32-true"
        )
    if word != "bf16-true":
        return {**trainer, "plugins": [*plugins]}
    if average:
        raise ValueError("precision=bf16-true: an average in bfloat16 would stand still; set ema=null")
    return {**trainer, "precision": None, "plugins": [*plugins, TrueBfloat16()]}
