"""An exponential moving average of the trained weights, and of nothing else.

Lightning's own averaging copies the whole module, frozen prior included, and cannot resume a filtered checkpoint; this
one keeps one tensor a trainable parameter. The average stands in for the weights while validating and when the run's
result is written; it travels in the checkpoint, so a resumed run continues it bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import lightning as L
import torch

from restore_lab.config.kinds import Decay
from restore_lab.config.validate import check_arguments
from restore_lab.training.sharding import like, whole

if TYPE_CHECKING:
    from torch import Tensor

    from restore_lab.training.module import TrainingModule


@check_arguments
class EMA(L.Callback):
    """average <- d average + (1 - d) weights, after each optimiser step.

    Args:
        decay: d at the end; early on it is (1 + n) / (10 + n) after n steps if that is less, so that the start fades.
    """

    def __init__(self, *, decay: Decay) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self.seen = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: TrainingModule) -> None:
        """Start from the weights, or move a resumed average to the device."""
        for name, p in pl_module.trainable().items():
            self.average[name] = like(self.average.get(name, p.detach().clone()), p)

    def on_train_start(self, trainer: L.Trainer, pl_module: TrainingModule) -> None:
        """Only now does the trainer know the step that it resumes from; a sharded run has its average only now."""
        self.seen = trainer.global_step
        self.on_fit_start(trainer, pl_module)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: TrainingModule, *args: Any) -> None:
        """Fold the new weights in, once for each optimiser step (not for each accumulated batch)."""
        if trainer.global_step == self.seen:
            return
        self.seen = trainer.global_step
        decay = min(self.decay, (1 + self.seen) / (10 + self.seen))
        for name, p in pl_module.trainable().items():
            self.average[name].lerp_(p.detach().to(self.average[name].dtype), 1 - decay)

    @contextmanager
    def applied(self, pl_module: TrainingModule) -> Iterator[None]:
        """Within the context the module has the averaged weights."""
        self._swap(pl_module)
        try:
            yield
        finally:
            self._swap(pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: TrainingModule) -> None:
        if self.average:
            self._swap(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: TrainingModule) -> None:
        if self.average:
            self._swap(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """What the checkpoint keeps."""
        return {"average": {name: whole(value) for name, value in self.average.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average = dict(state_dict["average"])

    @torch.no_grad()
    def _swap(self, pl_module: TrainingModule) -> None:
        for name, p in pl_module.trainable().items():
            kept = p.detach().clone()
            p.copy_(self.average[name])
            self.average[name] = kept
