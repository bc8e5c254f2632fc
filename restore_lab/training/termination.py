"""SIGTERM (from a cluster) and Ctrl-C end a training after the current step, with a checkpoint.

Lightning would stop between two accumulated batches, without a checkpoint. All ranks end after the same step, whichever
of them received the signal. A second signal ends the process immediately.
"""

from __future__ import annotations

import signal
import threading
from typing import Any

import lightning as L


class TerminationHandler(L.Callback):
    """Handles both signals. It is the first of the callbacks, and the others read `pending_signal`."""

    def __init__(self) -> None:
        self._requested = self._agreed = False
        self._signal: int = signal.SIGTERM
        self.step = -1
        self._previous: Any = None  # the handler of Ctrl-C before

    def pending_signal(self) -> int | None:
        """The signal that ends the run after the step just completed; None for none."""
        return self._signal if self._agreed else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.step = trainer.global_step
        if threading.current_thread() is threading.main_thread():  # Lightning restores the handlers after fit
            signal.signal(signal.SIGTERM, self._request)
            self._previous = signal.signal(signal.SIGINT, self._request)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore_handlers()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        """Restore the handler of Ctrl-C."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == self.step:  # an accumulated batch within a step
            return
        self.step = trainer.global_step
        self._agreed = self._requested
        if trainer.world_size > 1:
            self._agreed = trainer.strategy.reduce_boolean_decision(self._requested, all=False)

    def _request(self, number: int, frame: object) -> None:
        """Handle a signal: end after this step, and let a second signal end the process."""
        self._requested, self._signal = True, number
        self._restore_handlers()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
