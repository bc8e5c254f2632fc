"""A callback that ends its own process as `kill -9` does; tests reach it with `trusted_packages=[tests]`."""

from __future__ import annotations

import os
import signal
from typing import Any

import lightning as L


class KillAt(L.Callback):
    """SIGKILL after an optimiser step, before that step's checkpoint.

    Args:
        step: after which.
    """

    def __init__(self, *, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
