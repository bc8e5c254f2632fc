"""SIGTERM ends a training behind the step at work, with a checkpoint: what a cluster sends before it takes a machine.

Lightning would stop between two batches of a step, without one. All ranks end behind the same step, whichever of them
was told. A second SIGTERM ends the process at once.
"""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

import lightning as L

if TYPE_CHECKING:
    from restore_lab.methods.training import TrainingModule


class Terminating(L.Callback):
    """Listens for SIGTERM; the first of the callbacks, so that the others know (`now`)."""

    def __init__(self) -> None:
        self.asked = self.agreed = False
        self.step = -1

    def now(self) -> bool:
        """Whether the run is to end behind the step that has just been taken."""
        return self.agreed

    def on_train_start(self, trainer: L.Trainer, pl_module: TrainingModule) -> None:
        self.step = trainer.global_step
        if threading.current_thread() is threading.main_thread():  # Lightning puts back what was there before fit
            signal.signal(signal.SIGTERM, self._ask)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: TrainingModule, *args: Any) -> None:
        if trainer.global_step == self.step:  # one of several batches of a step
            return
        self.step = trainer.global_step
        alone = trainer.world_size == 1
        self.agreed = self.asked if alone else trainer.strategy.reduce_boolean_decision(self.asked, all=False)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
