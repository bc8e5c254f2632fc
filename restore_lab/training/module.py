"""The LightningModule around all that is trained: AdamW, a learning-rate schedule, checkpoints.

A checkpoint holds only what is trained; frozen priors come from their own folders.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import lightning as L
import torch
from torch.nn.parallel import DistributedDataParallel

from restore_lab.config.kinds import NonNegative, Positive, Range
from restore_lab.config.validate import check_arguments

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from restore_lab.methods.trainable import Trainable
    from restore_lab.types import Batch

Beta = Annotated[float, Range(0, 1, below=True)]  # of AdamW's averages
EXTRA = "training_state"  # in a checkpoint: what the module keeps besides its parameters
FUSED = ("cpu", "cuda")  # where torch has the fused kernel, and it was tried


@check_arguments
@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """AdamW and its schedule: linear warm-up, then constant or a cosine down to zero at the training's last step.

    `fused` runs the update as one kernel: "auto" where torch has it.
    """

    lr: Positive
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: NonNegative = 1e-2
    eps: Positive = 1e-8
    warmup_steps: Annotated[int, Range(0, 10**9, unit="optimiser steps")] = 0
    decay: Literal["constant", "cosine"] = "constant"
    fused: bool | Literal["auto"] = "auto"

    def factor(self, step: int, total: int) -> float:
        """The learning rate of a step as a fraction of `lr`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.decay == "constant":
            return 1.0
        progress = (step - self.warmup_steps) / max(total - self.warmup_steps, 1)
        return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


class TrainingModule(L.LightningModule):
    """Trains a method, a part of one, or a prior.

    Args:
        module: what is trained.
        optimisation: learning rate and schedule.
    """

    def __init__(self, module: Trainable, *, optimisation: Optimisation) -> None:
        super().__init__()
        self.module, self.optimisation = module, optimisation
        self.strict_loading = False
        self.sharded = False

    def setup(self, stage: str) -> None:
        """Get ready for several processes, if there are.

        Raises:
            ValueError: if a batch must stay in one.
        """
        if self.trainer.world_size == 1:
            return
        if not self.module.divides:
            raise ValueError(
                f"{type(self.module).__name__} looks at a batch as a whole; train it with trainer.devices=1"
            )
        # Buffers do not change in training. To exchange them before each forward pass would cost time, and would never
        # end in validation, where one process may have a batch more than another.
        buffers = [name for name, _ in self.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, buffers)

    def configure_model(self) -> None:
        """Cut the weights over the devices, where the strategy does that (trainer=fsdp)."""
        mesh = self._device_mesh
        if mesh is not None and not self.sharded:
            from restore_lab.training.sharding import shard

            shard(self, mesh["data_parallel"])
            self.sharded = True

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch; all losses are logged as `train/<name>`."""
        losses = self.module.loss(batch, step=self.global_step)
        for name, value in losses.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=len(batch))
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """What `validate` finds: figures are logged as `val/<name>`, images are for callbacks that log them."""
        found = self.module.validate(batch)
        for name, value in found.items():
            if value.ndim == 0:
                self.log(f"val/{name}", value, prog_bar=True, batch_size=len(batch))
        return found

    def log(self, name: str, value: Any, *, batch_size: int | None = None, **how: Any) -> None:
        """Lightning's; what is logged is the mean over the processes."""
        # Lightning takes the mean number of images per process in whole numbers: 1 for 2 and 1. Their sum is one.
        world = 1 if self._trainer is None else self._trainer.world_size
        super().log(name, value, batch_size=batch_size and batch_size * world, sync_dist=True, **how)

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Lightning's checkpoint: the trainable part only."""
        keep = self.trainable().keys()
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in keep}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[EXTRA] = self.module.training_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.module.load_training_state(checkpoint.get(EXTRA, {}))

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW over the trainable parameters, with the schedule of `optimisation`."""
        o = self.optimisation
        settings: dict[str, Any] = {"betas": tuple(o.betas), "weight_decay": o.weight_decay, "eps": o.eps}
        settings["fused"] = fused(o.fused, self.trainable().values())
        optimiser = torch.optim.AdamW(self.module.groups(), lr=o.lr, **settings)
        # Gradients are unscaled before they are clipped, as with any optimiser; this flag would leave it to the kernel.
        optimiser._step_supports_amp_scaling = False  # pyright: ignore[reportAttributeAccessIssue]
        optimiser.register_load_state_dict_pre_hook(_own_kernel)
        optimiser.register_load_state_dict_post_hook(_laid_out)
        total = self.last_step()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: o.factor(step, total))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def last_step(self) -> int:
        """The step at which the schedule ends; 0 where nothing says it and a constant schedule does not ask.

        Raises:
            ValueError: if the schedule has to know it.
        """
        total = self.trainer.estimated_stepping_batches
        if 0 < total < math.inf:
            return int(total)
        if self.optimisation.decay == "constant":
            return 0
        raise ValueError(unknown_end(self.optimisation.decay))

    def on_train_start(self) -> None:
        """Set the learning rate of the step to come: a checkpoint has that of the schedule under which it was made."""
        for config in self.trainer.lr_scheduler_configs:
            schedule = config.scheduler
            if isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
                rows = zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
                for group, base, factor in rows:
                    group["lr"] = base * factor(schedule.last_epoch)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Each parameter group by its own norm: a decoder and its discriminator are two players."""
        if len(optimizer.param_groups) == 1:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        for group in optimizer.param_groups if gradient_clip_val else ():
            torch.nn.utils.clip_grad_norm_(group["params"], float(gradient_clip_val or 0))


def unknown_end(decay: str) -> str:
    """What to say of a schedule that falls to a step that nothing names."""
    return (
        f"optimisation.decay={decay} falls to zero at the last step, and nothing says which that is; give max_steps or "
        "trainer.max_epochs, or take optimisation.decay=constant"
    )


def fused(choice: bool | Literal["auto"], parameters: Iterable[Tensor]) -> bool | None:
    """Whether AdamW runs as one kernel; None, which is torch's own choice among the others, where it cannot."""
    if choice != "auto":
        return bool(choice)
    return all(p.device.type in FUSED and p.is_floating_point() for p in parameters) or None


def _own_kernel(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint says with which kernel it was made; the run that goes on has its own."""
    pairs = zip(state["param_groups"], optimiser.param_groups, strict=True)
    return {**state, "param_groups": [{**group, **{k: own[k] for k in ("fused", "foreach")}} for group, own in pairs]}


def _laid_out(optimiser: torch.optim.Optimizer) -> None:
    """What was loaded in the memory order of its parameter: the fused kernel reads both as they lie, without a word."""
    for p, kept in optimiser.state.items():
        for name, value in kept.items():
            if isinstance(value, torch.Tensor) and value.shape == p.shape and value.stride() != p.stride():
                kept[name] = torch.empty_like(p, dtype=value.dtype).copy_(value)
