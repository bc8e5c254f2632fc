"""The losses of a run as JSON lines, `{"step": 17, "train/loss": 0.41, ...}`, continued when a run resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L

from restore_lab.storage.atomic import write_bytes_atomic
from restore_lab.storage.foreign import json_lines, parse_json
from restore_lab.system.faults import name_errors

if TYPE_CHECKING:
    from restore_lab.training.module import TrainingModule


class History(L.Callback):
    """Appends what was logged.

    Args:
        file: where to.
        every: write each n-th step.
    """

    def __init__(self, *, file: Path, every: int) -> None:
        self.file, self.every = file, every
        self.written = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: TrainingModule) -> None:
        """Drop the steps after the checkpoint that this run resumes from: they are about to be repeated."""
        if trainer.is_global_zero and self.file.exists():
            lines = [line for line in self.file.read_text().splitlines() if _step(line) <= trainer.global_step]
            write_bytes_atomic(self.file, "".join(line + "\n" for line in lines).encode())
        self.written = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: TrainingModule, *args: Any) -> None:
        self._write(trainer, prefix="train/")

    def on_validation_end(self, trainer: L.Trainer, pl_module: TrainingModule) -> None:
        if not trainer.sanity_checking:
            self._write(trainer, prefix="val/", force=True)

    def _write(self, trainer: L.Trainer, *, prefix: str, force: bool = False) -> None:
        step = trainer.global_step
        if not trainer.is_global_zero or (not force and (step == self.written or step % self.every)):
            return
        self.written = step
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}
        with name_errors(self.file), open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def newest(file: Path, metric: str) -> float:
    """The last value of a metric in a run's history.

    Raises:
        ValueError: if it was never logged.
    """
    lines = json_lines(file.read_text(), name=file) if file.exists() else []
    found = [line[metric] for line in lines if metric in line]
    if not found:
        names = sorted({name for line in lines for name in line} - {"step"})
        raise ValueError(
            f"{file} has no {metric!r}; it has: {', '.join(names) or 'nothing'}; losses are written every log_every "
            "steps, validation's every trainer.val_check_interval"
        )
    return float(found[-1])


def _step(line: str) -> int:
    """The step of a line; a line cut short by a kill counts as never written."""
    try:
        return int(parse_json(line, name="a line")["step"])
    except (ValueError, KeyError, TypeError):
        return 2**63
