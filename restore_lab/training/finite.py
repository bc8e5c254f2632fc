"""Stops a training when the loss is not finite, and records the batch in `nonfinite.json`.

Losses are checked together, every few steps and before every checkpoint: no synchronisation with the device in between,
and no checkpoint with non-finite weights. The record has the keys, seeds and recipes to reproduce the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch

from restore_lab.storage.atomic import write_json_atomic

if TYPE_CHECKING:
    from torch import Tensor

    from restore_lab.types import Batch

NONFINITE_FILE = "nonfinite.json"


@dataclass(frozen=True, kw_only=True)
class _Record:
    """The loss of a step and its batch, still to be checked."""

    step: int
    loss: Tensor
    batch: dict[str, Any]


class FiniteLossCheck(L.Callback):
    """Checks every loss, up to `every` steps late.

    Args:
        folder: the run's folder.
        every: steps between two checks.
        checkpoint_every: steps between two checkpoints.
        pending_signal: the signal that ends the run after this step with a checkpoint, None for none.
    """

    def __init__(
        self,
        *,
        folder: Path,
        every: int,
        checkpoint_every: int,
        pending_signal: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.folder, self.every, self.checkpoint_every = folder, every, checkpoint_every
        self.pending_signal = pending_signal
        self.records: list[_Record] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Store the loss, and check all stored ones if a check is due.

        Raises:
            ValueError: with the step and the file, if a loss is not finite.
        """
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        step = trainer.global_step
        if isinstance(loss, torch.Tensor):
            self.records.append(_Record(step=step, loss=loss.detach().mean(), batch=_batch_facts(batch)))
        due = step % self.every == 0 or step % self.checkpoint_every == 0 or 0 < trainer.max_steps <= step
        if due or self.pending_signal():
            self._check(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the rest, for a run that was ended by the time or a callback."""
        self._check(trainer)

    def _check(self, trainer: L.Trainer) -> None:
        records, self.records = self.records, []
        if not records:
            return
        losses = torch.stack([record.loss for record in records]).float().tolist()
        for record, loss in zip(records, losses, strict=True):
            if math.isfinite(loss):
                continue
            file = self.folder / NONFINITE_FILE
            if trainer.world_size > 1:
                file = file.with_name(f"nonfinite-rank{trainer.global_rank}.json")
            write_json_atomic(file, {"step": record.step, "loss": str(loss), **record.batch})
            raise ValueError(
                f"the loss is {loss} at step {record.step}; {file} says which batch it was. The same command continues "
                "from the last checkpoint, to the same end; lower optimisation.lr, or take precision=32-true"
            )


def _batch_facts(batch: Any) -> dict[str, Any]:
    """The keys, seeds, captions and recipes of a batch, from which it can be reproduced."""
    recipes = [None if recipe is None else recipe.to_json() for recipe in getattr(batch, "recipe", ())]
    captions = list(getattr(batch, "caption", ()))
    keys, seeds = list(getattr(batch, "key", ())), [str(seed) for seed in getattr(batch, "seed", ())]
    return {"keys": keys, "seeds": seeds, "captions": captions, "recipes": recipes}
