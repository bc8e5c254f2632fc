"""The LightningModule that trains methods and priors: AdamW, a learning-rate schedule, checkpoints.

A checkpoint holds only the trainable parameters; frozen priors are loaded from their folders.
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
from restore_lab.methods.trainable import Trainable, trainable_parameters

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
    from torch import Tensor

    from restore_lab.types import Batch

Beta = Annotated[float, Range(0, 1, below=True)]  # decay of AdamW's moments
_STATE_KEY = "training_state"  # in a checkpoint: the module's state besides its parameters
_FUSED_DEVICES = ("cpu", "cuda")  # where torch's fused kernel is tested


@check_arguments
@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """AdamW and its learning-rate schedule: linear warm-up, then constant or a cosine to zero at the last step.

    `fused` selects the fused kernel; "auto" where torch has one.
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
        module: the method, part or prior.
        optimisation: learning rate and schedule.
    """

    def __init__(self, module: Trainable, *, optimisation: Optimisation) -> None:
        super().__init__()
        self.module, self.optimisation = module, optimisation
        self.strict_loading = False
        self.sharded = False

    def setup(self, stage: str) -> None:
        """Prepare for training in several processes.

        Raises:
            ValueError: for a module whose batches must not be divided.
        """
        if self.trainer.world_size == 1:
            return
        if not self.module.divisible:
            raise ValueError(
                f"{type(self.module).__name__} looks at a batch as a whole; train it with trainer.devices=1"
            )
        # Buffers do not change in training. Broadcasting them before each forward pass would take time, and would hang
        # in validation, where one process may have one batch more than another.
        buffers = [name for name, _ in self.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, buffers)

    def configure_model(self) -> None:
        """Shard the weights over the devices, if the strategy does so (trainer=fsdp)."""
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
        """The results of `validate`; metrics are logged as `val/<name>`, images are left to callbacks."""
        results = self.module.validate(batch)
        for name, value in results.items():
            if value.ndim == 0:
                self.log(f"val/{name}", value, prog_bar=True, batch_size=len(batch))
        return results

    def log(self, *args: Any, batch_size: int | None = None, **kwargs: Any) -> None:
        """Log the mean over the processes, weighted by `batch_size`."""
        # Lightning averages batch sizes over processes in integers (2 and 1 give 1); multiplied by the number of
        # processes, their average is their sum.
        world = 1 if self._trainer is None else self._trainer.world_size
        super().log(*args, batch_size=batch_size and batch_size * world, sync_dist=True, **kwargs)

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The trainable parameters by name."""
        return trainable_parameters(self)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The trainable part, which is what a checkpoint holds."""
        names = self.trainable().keys()
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in names}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[_STATE_KEY] = self.module.training_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.module.load_training_state(checkpoint.get(_STATE_KEY, {}))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over the trainable parameters, with the schedule of `optimisation`."""
        o = self.optimisation
        settings: dict[str, Any] = {"betas": tuple(o.betas), "weight_decay": o.weight_decay, "eps": o.eps}
        settings["fused"] = use_fused(o.fused, self.trainable().values())
        optimiser: Any = torch.optim.AdamW(self.module.param_groups(), lr=o.lr, **settings)
        # Gradients are unscaled before clipping, as with any optimiser; with this flag the kernel would unscale them.
        optimiser._step_supports_amp_scaling = False
        optimiser.register_load_state_dict_pre_hook(_keep_kernel)
        optimiser.register_load_state_dict_post_hook(_match_memory_layout)
        total = self.last_step()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: o.factor(step, total))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def last_step(self) -> int:
        """The step at which the schedule ends; 0 if unknown, which a constant schedule allows.

        Raises:
            ValueError: if it is unknown and the learning rate decays.
        """
        total = self.trainer.estimated_stepping_batches
        if 0 < total < math.inf:
            return int(total)
        if self.optimisation.decay == "constant":
            return 0
        raise ValueError(unknown_end_message(self.optimisation.decay))

    def on_train_start(self) -> None:
        """Set the learning rate of the next step: a checkpoint has that of the schedule it was trained with."""
        for config in self.trainer.lr_scheduler_configs:
            schedule = config.scheduler
            if isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
                rows = zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
                for group, base, factor in rows:
                    group["lr"] = base * factor(schedule.last_epoch)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip each parameter group by its own norm: a decoder and its discriminator are optimised separately."""
        if len(optimizer.param_groups) == 1:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        for group in optimizer.param_groups if gradient_clip_val else ():
            torch.nn.utils.clip_grad_norm_(group["params"], float(gradient_clip_val or 0))


def unknown_end_message(decay: str) -> str:
    """The error message for a decaying schedule without a known last step."""
    return (
        f"optimisation.decay={decay} falls to zero at the last step, and nothing says which that is; give max_steps or "
        "trainer.max_epochs, or take optimisation.decay=constant"
    )


def use_fused(choice: bool | Literal["auto"], parameters: Iterable[Tensor]) -> bool | None:
    """AdamW's argument `fused`; for "auto" on devices without the kernel, None, which leaves the choice to torch."""
    if choice != "auto":
        return bool(choice)
    return all(p.device.type in _FUSED_DEVICES and p.is_floating_point() for p in parameters) or None


def _keep_kernel(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The state with this run's choice of kernel; the checkpoint has that of the run that wrote it."""
    pairs = zip(state["param_groups"], optimiser.param_groups, strict=True)
    groups = [{**saved, **{key: own[key] for key in ("fused", "foreach")}} for saved, own in pairs]
    return {**state, "param_groups": groups}


def _match_memory_layout(optimiser: torch.optim.Optimizer) -> None:
    """Give loaded moments the memory layout of their parameter: the fused kernel silently ignores strides."""
    for p, moments in optimiser.state.items():
        for name, value in moments.items():
            if isinstance(value, torch.Tensor) and value.shape == p.shape and value.stride() != p.stride():
                moments[name] = torch.empty_like(p, dtype=value.dtype).copy_(value)
