"""Stops a training whose loss is no longer a number, and writes down the batch that did it.

Losses are looked at together, every few steps and before every checkpoint, so that the device is not waited for in
between and no checkpoint holds weights that are lost. `nonfinite.json` has the keys, seeds and recipes of the batch:
what is needed to make it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch

from restore_lab.storage.atomic import write_json_atomic

if TYPE_CHECKING:
    from torch import Tensor

    from restore_lab.training.module import TrainingModule
    from restore_lab.types import Batch

FILE = "nonfinite.json"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A batch that was trained on."""

    step: int
    loss: Tensor
    batch: dict[str, Any]


class Finite(L.Callback):
    """Looks at every loss, a few steps late.

    Args:
        folder: the run's.
        every: steps between two looks.
        checkpoint_every: steps between two checkpoints.
        terminated: the signal that ends the run after this step, with a checkpoint; null for none.
    """

    def __init__(
        self, *, folder: Path, every: int, checkpoint_every: int, terminated: Callable[[], int | None] = lambda: None
    ) -> None:
        self.folder, self.every, self.checkpoint_every, self.terminated = folder, every, checkpoint_every, terminated
        self.seen: list[Seen] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: TrainingModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Remember, and look if it is time.

        Raises:
            ValueError: with the step and the file, if a loss is not a number.
        """
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        step = trainer.global_step
        if isinstance(loss, torch.Tensor):
            self.seen.append(Seen(step=step, loss=loss.detach().mean(), batch=_named(batch)))
        due = step % self.every == 0 or step % self.checkpoint_every == 0 or 0 < trainer.max_steps <= step
        if due or self.terminated():
            self._look(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: TrainingModule) -> None:
        """Look at what is left where the time, or a callback, ended the run."""
        self._look(trainer)

    def _look(self, trainer: L.Trainer) -> None:
        seen, self.seen = self.seen, []
        if not seen:
            return
        losses = torch.stack([one.loss for one in seen]).float().tolist()
        for one, loss in zip(seen, losses, strict=True):
            if abs(loss) < float("inf"):
                continue
            file = self.folder / FILE
            if trainer.world_size > 1:
                file = file.with_name(f"nonfinite-rank{trainer.global_rank}.json")
            write_json_atomic(file, {"step": one.step, "loss": str(loss), **one.batch})
            raise ValueError(
                f"the loss is {loss} at step {one.step}; {file} says which batch it was. The same command continues "
                "from the last checkpoint, to the same end; lower optimisation.lr, or take precision=32-true"
            )


def _named(batch: Any) -> dict[str, Any]:
    """What a batch is made again from."""
    recipes = [None if one is None else one.to_json() for one in getattr(batch, "recipe", ())]
    captions = list(getattr(batch, "caption", ()))
    keys, seeds = list(getattr(batch, "key", ())), [str(seed) for seed in getattr(batch, "seed", ())]
    return {"keys": keys, "seeds": seeds, "captions": captions, "recipes": recipes}
