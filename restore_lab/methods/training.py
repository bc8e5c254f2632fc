"""What every trainable module of the project shares: optimiser, learning-rate schedule, checkpoints of trainable parts.

A checkpoint holds only what is trained; frozen priors come from their own folders. All randomness of a training step
comes from the samples' own seeds (`Batch.seed`), so a resumed run needs no random states to repeat the same losses, and
processes that share a batch draw what one process would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import lightning as L
import torch
from torch.nn.parallel import DistributedDataParallel

from restore_lab.config.kinds import NotNegative, Positive, Range

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor

Beta = Annotated[float, Range(0, 1, below=True)]  # of AdamW's averages
FUSED = ("cpu", "cuda")  # where torch has the fused kernel, and it was tried


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """AdamW and its schedule: linear warm-up, then constant or a cosine down to zero at the training's last step.

    `fused` runs the update as one kernel: "auto" where torch has it.
    """

    lr: Positive
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: NotNegative = 1e-2
    eps: Positive = 1e-8
    warmup_steps: Annotated[int, Range(0, 10**9, unit="optimiser steps")] = 0
    decay: Literal["constant", "cosine"] = "constant"
    fused: bool | Literal["auto"] = "auto"

    def factor(self, step: int, total: int) -> float:
        """The learning rate of a step as a fraction of `lr`.

        Raises:
            ValueError: for an unknown decay.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.decay == "constant":
            return 1.0
        if self.decay == "cosine":
            progress = (step - self.warmup_steps) / max(total - self.warmup_steps, 1)
            return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
        raise ValueError(f"optimisation.decay={self.decay!r} is not known; one of constant, cosine")


class TrainingModule(L.LightningModule):
    """Base of the methods and of the priors' own training.

    Args:
        optimisation: learning rate and schedule.
    """

    divides = True  # whether the loss of a batch is the mean of the losses of its parts

    def __init__(self, *, optimisation: Optimisation) -> None:
        super().__init__()
        self.optimisation = optimisation
        self.strict_loading = False
        self.sharded = False

    def setup(self, stage: str) -> None:
        """Get ready for several processes, if there are.

        Raises:
            ValueError: if a batch must stay in one.
        """
        if self.trainer.world_size == 1:
            return
        if not self.divides:
            raise ValueError(f"{type(self).__name__} looks at a batch as a whole; train it with trainer.devices=1")
        # Buffers do not change in training. To exchange them before each forward pass would cost time, and would never
        # end in validation, where one process may have a batch more than another.
        buffers = [name for name, _ in self.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, buffers)

    def configure_model(self) -> None:
        """Cut the weights over the devices, where the strategy does that (trainer=fsdp)."""
        mesh = self._device_mesh
        if mesh is not None and not self.sharded:
            from restore_lab.methods.sharding import shard

            shard(self, mesh["data_parallel"])
            self.sharded = True

    def log(self, name: str, value: Any, *, batch_size: int | None = None, **how: Any) -> None:
        """Lightning's; what is logged is the mean over the processes."""
        # Lightning takes the mean number of images a process in whole numbers: 1 for 2 and 1. Their sum is one.
        world = 1 if self._trainer is None else self._trainer.world_size
        super().log(name, value, batch_size=batch_size and batch_size * world, sync_dist=True, **how)

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Lightning's checkpoint: the trainable part alone."""
        keep = self.trainable().keys()
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in keep}

    def groups(self) -> list[dict[str, Any]]:
        """The optimiser's parameter groups: one, with all that is trained."""
        return [{"params": list(self.trainable().values())}]

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW over the trainable parameters, with the schedule of `optimisation`."""
        o = self.optimisation
        settings: dict[str, Any] = {"betas": tuple(o.betas), "weight_decay": o.weight_decay, "eps": o.eps}
        settings["fused"] = fused(o.fused, self.trainable().values())
        optimiser = torch.optim.AdamW(self.groups(), lr=o.lr, **settings)
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

    def export(self, folder: Path) -> None:
        """Write the finished artefact (weights and whatever is needed to load them) into an existing folder."""
        raise TypeError(f"{type(self).__name__} does not say how its result is written; override export()")


def unknown_end(decay: str) -> str:
    """What to say of a schedule that falls to a step that nothing names."""
    return (
        f"optimisation.decay={decay} falls to zero at the last step, and nothing says which that is; give max_steps or "
        "trainer.max_epochs, or take optimisation.decay=constant"
    )


def fused(choice: bool | str, parameters: Iterable[Tensor]) -> bool | None:
    """Whether AdamW runs as one kernel; None, which is torch's own choice among the others, where it cannot.

    Raises:
        ValueError: for a choice that is not known.
    """
    if choice not in (True, False, "auto"):
        raise ValueError(f"optimisation.fused={choice!r} is not known; one of auto, true, false")
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
