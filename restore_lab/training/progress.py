"""A progress bar over the optimiser steps of a run; Lightning's needs an epoch's length, which the stream lacks."""

from __future__ import annotations

import sys
from typing import Any

import lightning as L


class StepBar(L.Callback):
    """One tick per optimiser step; in a log file, one line every half minute."""

    def __init__(self) -> None:
        self.bar: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        from tqdm import tqdm

        self.bar = tqdm(
            total=trainer.max_steps if trainer.max_steps > 0 else None,
            initial=trainer.global_step,
            desc="training",
            unit="step",
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            disable=not trainer.is_global_zero,
        )

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step > self.bar.n and self.bar.update(trainer.global_step - self.bar.n):
            self._show_metrics(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._show_metrics(trainer)
        self.bar.close()

    def _show_metrics(self, trainer: L.Trainer) -> None:
        """Set the metrics for the next redraw; reading them synchronises with the device, so not in every step."""
        values = {name.removeprefix("train/"): f"{float(v):.3g}" for name, v in trainer.callback_metrics.items()}
        self.bar.set_postfix(values, refresh=False)
