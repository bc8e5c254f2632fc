"""How a training ended: at its last step, or before, by the time, by a callback.

Each is an end: the artefact is complete, and its manifest says which it was. The limits are settings and so part of the
identity. (What `trainer.max_time` leaves depends on the machine too, which no identity holds.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning as L

ENDED = "ended"  # in a manifest's extra


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Why and where a training ended.

    Attributes:
        by: max_steps, max_epochs, max_time, or the callback's class.
        step: optimiser steps taken.
        of: optimiser steps at most; None where nothing limits them.
    """

    by: str
    step: int
    of: int | None

    def __str__(self) -> str:
        return f"{self.by} after {self.step}" + (f" of {self.of} steps" if self.of else " steps")

    def as_json(self) -> dict[str, Any]:
        """For a manifest."""
        return {**asdict(self), "said": str(self)}


def in_steps(settings: Mapping[str, Any], data: Any) -> dict[str, Any]:
    """A trainer node with passes over the training images as steps: the stream of them has no end.

    Args:
        settings: the stage's trainer node.
        data: the data module; one without `train_batches(epochs)` has epochs of Lightning's own.
    """
    if not hasattr(data, "train_batches"):
        return {**settings, "max_steps": settings.get("max_steps") or -1}
    each = settings.get("accumulate_grad_batches") or 1
    found: dict[str, Any] = {**settings, "max_epochs": -1, "min_epochs": None}
    for end, choose in (("max", min), ("min", max)):
        given = [settings.get(f"{end}_steps")]
        if epochs := settings.get(f"{end}_epochs"):
            given.append(math.ceil(data.train_batches(epochs) / each))
        found[f"{end}_steps"] = choose([steps for steps in given if steps], default=None)
    return {**found, "max_steps": found["max_steps"] or -1}


def ending_of(trainer: L.Trainer, settings: Mapping[str, Any]) -> Ending | None:
    """How a finished `fit` ended; None if it was interrupted.

    Args:
        trainer: after `fit`.
        settings: the stage's trainer node, with epochs as the config has them.

    Raises:
        ValueError: if a metric that is no number ended it.
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
    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
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
