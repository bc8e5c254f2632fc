"""A bar over the optimiser steps of a run, with the time left; the endless training stream has no length of its own."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import lightning as L

if TYPE_CHECKING:
    from restore_lab.training.module import TrainingModule


class StepBar(L.Callback):
    """One tick an optimiser step; in a log file a line every half minute."""

    def __init__(self) -> None:
        self.bar: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: TrainingModule) -> None:
        from tqdm import tqdm

        self.bar = tqdm(
            total=trainer.max_steps if trainer.max_steps > 0 else None,
            initial=trainer.global_step,
            desc="training",
            unit="step",
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            disable=not trainer.is_global_zero,
        )

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: TrainingModule, *args: Any) -> None:
        if trainer.global_step > self.bar.n and self.bar.update(trainer.global_step - self.bar.n):
            self._say(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: TrainingModule) -> None:
        self._say(trainer)
        self.bar.close()

    def _say(self, trainer: L.Trainer) -> None:
        """What was logged, for the next time that the bar is drawn: to read it is to wait for the device."""
        values = {name.removeprefix("train/"): f"{float(v):.3g}" for name, v in trainer.callback_metrics.items()}
        self.bar.set_postfix(values, refresh=False)
