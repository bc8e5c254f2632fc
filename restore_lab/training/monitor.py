"""Callbacks that log, besides the losses, the learning rate, the gradient norm, images per second, and the first
validation images as restored, with their prompts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import LearningRateMonitor

from restore_lab.methods.trainable import trainable_parameters
from restore_lab.tracking import ImagePanel, log_panels

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from restore_lab.types import Batch


def logger_callbacks(*, every: int, pictures: int) -> list[L.Callback]:
    """The callbacks for a run with a logger.

    Args:
        every: steps between two logged values.
        pictures: number of validation images; 0 for none.
    """
    return [LearningRateMonitor(logging_interval="step"), Gauges(every=every), ValidationPanels(pictures=pictures)]


class Gauges(L.Callback):
    """Logs `train/images_per_second`, without the time of validation, and `train/grad_norm` before clipping."""

    def __init__(self, *, every: int) -> None:
        self.every = every
        self.images, self.start, self.pause, self.last_step = 0, 0.0, 0.0, 0
        self.norm: Tensor | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.images, self.start, self.last_step = 0, time.perf_counter(), trainer.global_step

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        if (trainer.global_step + 1) % self.every == 0:
            grads = [p.grad for p in trainable_parameters(pl_module).values() if p.grad is not None]
            self.norm = torch.nn.utils.get_total_norm(grads)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch) * trainer.world_size
        step = trainer.global_step
        if step == self.last_step or step % self.every:
            return
        values = {"train/images_per_second": self.images / (time.perf_counter() - self.start)}
        if self.norm is not None:
            values["train/grad_norm"] = float(self.norm)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step - 1)  # Lightning counts steps from 0
        self.images, self.start, self.last_step = 0, time.perf_counter(), step

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.pause = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start += time.perf_counter() - self.pause


class ValidationPanels(L.Callback):
    """Logs input, restored image and original of the first validation images, after every validation.

    The restored images are "restored", (B, 3, H, W) in [0, 1], of the module's `validate`.
    """

    def __init__(self, *, pictures: int) -> None:
        self.pictures = pictures
        self.panels: list[ImagePanel] = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        remaining = self.pictures - len(self.panels)
        if (
            remaining <= 0
            or not trainer.is_global_zero
            or not isinstance(outputs, Mapping)
            or "restored" not in outputs
        ):
            return
        prompt = pl_module.module.conditioner.prompts(batch, training=False)
        columns = {"input": batch.lq_BCHW, "restored": outputs["restored"], "original": batch.hq_BCHW}
        self.panels += [
            ImagePanel(
                key=batch.key[i],
                images={title: _image(image_BCHW[i]) for title, image_BCHW in columns.items()},
                caption=prompt.semantic[i],
                instruction=prompt.instruction[i],
            )
            for i in range(min(remaining, len(batch)))
        ]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in () if trainer.sanity_checking else trainer.loggers:
            log_panels(logger, "validation", self.panels, step=trainer.global_step - 1)
        self.panels = []


def _image(image_CHW: Tensor) -> Image:
    """8-bit RGB of an image in [0, 1]."""
    from PIL import Image

    return Image.fromarray((image_CHW.float().permute(1, 2, 0).clamp(0, 1) * 255).round().byte().cpu().numpy())
