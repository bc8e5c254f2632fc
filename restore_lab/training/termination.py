"""SIGTERM and Ctrl-C end a training after the step at work, with a checkpoint; a cluster sends the first.

Lightning would stop between two batches of a step, without one. All ranks end after the same step, whichever of them
heard it. A second signal ends the process at once.
"""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

import lightning as L

if TYPE_CHECKING:
    from restore_lab.training.module import TrainingModule


class Terminating(L.Callback):
    """Listens for both signals; the first of the callbacks, so that the others know (`now`)."""

    def __init__(self) -> None:
        self.asked = self.agreed = False
        self.number: int = signal.SIGTERM
        self.step = -1
        self.interrupt: Any = None  # what Ctrl-C did before

    def now(self) -> int | None:
        """The signal that ends the run after the step that has just been taken; null for none."""
        return self.number if self.agreed else None

    def on_train_start(self, trainer: L.Trainer, pl_module: TrainingModule) -> None:
        self.step = trainer.global_step
        if threading.current_thread() is threading.main_thread():  # Lightning puts back what was there before fit
            signal.signal(signal.SIGTERM, self._ask)
            self.interrupt = signal.signal(signal.SIGINT, self._ask)

    def on_train_end(self, trainer: L.Trainer, pl_module: TrainingModule) -> None:
        self._put_back()

    def on_exception(self, trainer: L.Trainer, pl_module: TrainingModule, exception: BaseException) -> None:
        self._put_back()

    def _put_back(self) -> None:
        if self.interrupt is not None:
            signal.signal(signal.SIGINT, self.interrupt)
            self.interrupt = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: TrainingModule, *args: Any) -> None:
        if trainer.global_step == self.step:  # one of several batches of a step
            return
        self.step = trainer.global_step
        alone = trainer.world_size == 1
        self.agreed = self.asked if alone else trainer.strategy.reduce_boolean_decision(self.asked, all=False)

    def _ask(self, number: int, frame: object) -> None:
        self.asked, self.number = True, number
        self._put_back()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
