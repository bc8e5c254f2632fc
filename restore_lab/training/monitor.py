"""What a training shows on its logger's page beside the losses: learning rate, gradient norm, images a second, and
the first validation images as they are restored, with their words."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import LearningRateMonitor

from restore_lab.tracking import ImagePanel, log_panels

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from restore_lab.training.module import TrainingModule
    from restore_lab.types import Batch


def page_callbacks(*, every: int, pictures: int) -> list[L.Callback]:
    """The callbacks that fill a page.

    Args:
        every: log each n-th step.
        pictures: validation images to show; 0 for none.
    """
    return [LearningRateMonitor(logging_interval="step"), Gauges(every=every), ValidationPanels(pictures=pictures)]


class Gauges(L.Callback):
    """`train/images_per_second`, validation left out, and `train/grad_norm` before clipping, at every n-th step."""

    def __init__(self, *, every: int) -> None:
        self.every = every
        self.images, self.since, self.paused, self.logged = 0, 0.0, 0.0, 0
        self.norm: Tensor | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: TrainingModule) -> None:
        self.images, self.since, self.logged = 0, time.perf_counter(), trainer.global_step

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: TrainingModule, optimizer: Any) -> None:
        if (trainer.global_step + 1) % self.every == 0:
            grads = [p.grad for p in pl_module.trainable().values() if p.grad is not None]
            self.norm = torch.nn.utils.get_total_norm(grads)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: TrainingModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch) * trainer.world_size
        step = trainer.global_step
        if step == self.logged or step % self.every:
            return
        values = {"train/images_per_second": self.images / (time.perf_counter() - self.since)}
        if self.norm is not None:
            values["train/grad_norm"] = float(self.norm)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step - 1)  # Lightning counts a step's own values from 0
        self.images, self.since, self.logged = 0, time.perf_counter(), step

    def on_validation_start(self, trainer: L.Trainer, pl_module: TrainingModule) -> None:
        self.paused = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: TrainingModule) -> None:
        self.since += time.perf_counter() - self.paused


class ValidationPanels(L.Callback):
    """Input, restored and original of the first validation images, after every validation.

    A module shows images by returning "restored", (B, 3, H, W) in [0, 1], from its `validate`.
    """

    def __init__(self, *, pictures: int) -> None:
        self.pictures = pictures
        self.shown: list[ImagePanel] = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        room = self.pictures - len(self.shown)
        if room <= 0 or not trainer.is_global_zero or not isinstance(outputs, Mapping) or "restored" not in outputs:
            return
        prompt = pl_module.module.conditioner.prompts(batch, training=False)
        columns = {"input": batch.lq_BCHW, "restored": outputs["restored"], "original": batch.hq_BCHW}
        self.shown += [
            ImagePanel(
                key=batch.key[i],
                images={title: _image(image_BCHW[i]) for title, image_BCHW in columns.items()},
                caption=prompt.semantic[i],
                instruction=prompt.instruction[i],
            )
            for i in range(min(room, len(batch)))
        ]

    def on_validation_end(self, trainer: L.Trainer, pl_module: TrainingModule) -> None:
        for logger in () if trainer.sanity_checking else trainer.loggers:
            log_panels(logger, "validation", self.shown, step=trainer.global_step - 1)
        self.shown = []


def _image(image_CHW: Tensor) -> Image:
    """8-bit RGB of an image in [0, 1]."""
    from PIL import Image

    return Image.fromarray((image_CHW.float().permute(1, 2, 0).clamp(0, 1) * 255).round().byte().cpu().numpy())
