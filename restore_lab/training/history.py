"""The losses of a run as lines of JSON, `{"step": 17, "train/loss": 0.41, ...}`; a resumed run continues the file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning as L

from restore_lab.storage.atomic import write_bytes_atomic
from restore_lab.storage.foreign import json_lines, parse_json
from restore_lab.system.faults import name_errors


class History(L.Callback):
    """Appends the logged values to a file.

    Args:
        file: the file.
        every: steps between two lines.
    """

    def __init__(self, *, file: Path, every: int) -> None:
        self.file, self.every = file, every
        self.last_step = 0  # the last one written

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Delete the lines after the checkpoint that this run resumes from: their steps are repeated."""
        if trainer.is_global_zero and self.file.exists():
            lines = [line for line in self.file.read_text().splitlines() if _step(line) <= trainer.global_step]
            write_bytes_atomic(self.file, "".join(line + "\n" for line in lines).encode())
        self.last_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        self._write(trainer, prefix="train/")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._write(trainer, prefix="val/", force=True)

    def _write(self, trainer: L.Trainer, *, prefix: str, force: bool = False) -> None:
        step = trainer.global_step
        if not trainer.is_global_zero or (not force and (step == self.last_step or step % self.every)):
            return
        self.last_step = step
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}
        with name_errors(self.file), open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def last_value(file: Path, metric: str) -> float:
    """The last value of a metric in a run's history.

    Raises:
        ValueError: if it was not logged.
    """
    lines = json_lines(file.read_text(), name=file) if file.exists() else []
    values = [line[metric] for line in lines if metric in line]
    if not values:
        names = sorted({name for line in lines for name in line} - {"step"})
        raise ValueError(
            f"{file} has no {metric!r}; it has: {', '.join(names) or 'nothing'}; losses are written every log_every "
            "steps, validation's every trainer.val_check_interval"
        )
    return float(values[-1])


def _step(line: str) -> float:
    """The step of a line; infinite for an incomplete line of a killed process, which is deleted on resume."""
    try:
        return int(parse_json(line, name="a line")["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
