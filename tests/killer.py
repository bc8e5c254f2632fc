"""Callbacks that end a run, as `kill -9` does or as Ctrl-C; tests reach them with `trusted_packages=[tests]`."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
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


class StopAt(KillAt):
    """Ctrl-C after an optimiser step."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


class Notes(L.Callback):
    """Which images each rank saw in which step: a line [step, keys] in `<folder>/<rank>.jsonl`.

    Args:
        folder: for the files.
    """

    def __init__(self, *, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / f"{trainer.global_rank}.jsonl", "a") as file:
            file.write(json.dumps([trainer.global_step + 1, list(batch.key)]) + "\n")
