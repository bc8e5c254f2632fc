"""An exponential moving average of the trainable weights.

Lightning's averaging copies the whole module, including the frozen prior, and cannot resume from a checkpoint of the
trainable part; this callback holds one tensor per trainable parameter. The averaged weights are used in validation and
for the exported result. They are part of the checkpoint, so a resumed run continues the same average bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import lightning as L
import torch

from restore_lab.config.kinds import Decay
from restore_lab.config.validate import check_arguments
from restore_lab.methods.trainable import trainable_parameters
from restore_lab.training.sharding import distribute_like, full_tensor

if TYPE_CHECKING:
    from torch import Tensor


@check_arguments
class EMA(L.Callback):
    """average <- d average + (1 - d) weights, after each optimiser step n.

    Args:
        decay: upper bound of d = min(decay, (1 + n) / (10 + n)); a small d early on forgets the initial weights.
    """

    def __init__(self, *, decay: Decay) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self.step = 0  # the last one averaged

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start from the weights, or move a resumed average to the device."""
        for name, p in trainable_parameters(pl_module).items():
            self.average[name] = distribute_like(self.average.get(name, p.detach().clone()), p)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read the step to resume from, and shard the average of a sharded run: neither is possible before."""
        self.step = trainer.global_step
        self.on_fit_start(trainer, pl_module)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        """Update the average, once per optimiser step (not per accumulated batch)."""
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        for name, p in trainable_parameters(pl_module).items():
            self.average[name].lerp_(p.detach().to(self.average[name].dtype), 1 - decay)

    @contextmanager
    def averaged_weights(self, pl_module: L.LightningModule) -> Iterator[None]:
        """A context in which the module has the averaged weights."""
        self._swap(pl_module)
        try:
            yield
        finally:
            self._swap(pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.average:
            self._swap(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.average:
            self._swap(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The average as full tensors, for the checkpoint."""
        return {"average": {name: full_tensor(value) for name, value in self.average.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average = dict(state_dict["average"])

    @torch.no_grad()
    def _swap(self, pl_module: L.LightningModule) -> None:
        """Exchange the weights and their average."""
        for name, p in trainable_parameters(pl_module).items():
            weights = p.detach().clone()
            p.copy_(self.average[name])
            self.average[name] = weights
