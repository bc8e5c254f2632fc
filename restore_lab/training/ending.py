"""How a training ended: at its last step, or earlier by its time limit or a callback.

The artefact is complete in each case, and its manifest records which it was. The limits are settings and part of the
identity. (With `trainer.max_time` the result also depends on the machine, which is not in the identity.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning as L

ENDING_KEY = "ended"  # in a manifest's `extra`


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Why and where a training ended.

    Attributes:
        by: max_steps, max_epochs, max_time, or the class of a callback.
        step: number of optimiser steps.
        of: maximum number of optimiser steps; None for no limit.
    """

    by: str
    step: int
    of: int | None

    def __str__(self) -> str:
        return f"{self.by} after {self.step}" + (f" of {self.of} steps" if self.of else " steps")

    def as_json(self) -> dict[str, Any]:
        """The entry in a manifest."""
        return {**asdict(self), "said": str(self)}


def epochs_to_steps(settings: Mapping[str, Any], data: Any) -> dict[str, Any]:
    """A trainer node with epochs converted to steps, since the stream of training images has no end.

    Args:
        settings: the stage's trainer node.
        data: the data module; without `train_batches(epochs)`, its epochs are Lightning's and stay.
    """
    if not hasattr(data, "train_batches"):
        return {**settings, "max_steps": settings.get("max_steps") or -1}
    accumulated = settings.get("accumulate_grad_batches") or 1
    converted: dict[str, Any] = {**settings, "max_epochs": -1, "min_epochs": None}
    for limit, choose in (("max", min), ("min", max)):
        candidates = [settings.get(f"{limit}_steps")]
        if epochs := settings.get(f"{limit}_epochs"):
            candidates.append(math.ceil(data.train_batches(epochs) / accumulated))
        converted[f"{limit}_steps"] = choose([steps for steps in candidates if steps], default=None)
    return {**converted, "max_steps": converted["max_steps"] or -1}


def ending_of(trainer: L.Trainer, settings: Mapping[str, Any]) -> Ending | None:
    """How a finished `fit` ended; None if it was interrupted.

    Args:
        trainer: after `fit`.
        settings: the stage's trainer node, with epochs as in the config.

    Raises:
        ValueError: if early stopping ended it because its metric was not finite.
    """
    from lightning.pytorch.callbacks import EarlyStopping, Timer
    from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

    step, limit = trainer.global_step, trainer.max_steps
    of = limit if limit > 0 else None
    if trainer.interrupted:
        return None
    if of is not None and step >= of:
        epochs = settings.get("max_epochs") and settings.get("max_steps") != of
        return Ending(by="max_epochs" if epochs else "max_steps", step=step, of=of)
    for callback in vars(trainer)["callbacks"]:  # set by one of Lightning's connectors, unknown to type checkers
        if isinstance(callback, EarlyStopping) and callback.stopping_reason == EarlyStoppingReason.NON_FINITE_METRIC:
            raise ValueError(f"EarlyStopping: {callback.monitor} is no number at step {step}; lower optimisation.lr")
        if isinstance(callback, EarlyStopping) and callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            return Ending(by=type(callback).__name__, step=step, of=of)
        left = callback.time_remaining() if isinstance(callback, Timer) else None
        if left is not None and left <= 0:
            return Ending(by="max_time" if settings.get("max_time") else "Timer", step=step, of=of)
    if trainer.should_stop:
        return Ending(by="a callback", step=step, of=of)
    epochs = trainer.max_epochs
    return None if epochs in (None, -1) else Ending(by="max_epochs", step=step, of=of)
