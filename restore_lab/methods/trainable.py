"""The interface between what a training stage trains (a method, a part of one, a prior) and the LightningModule.

All random numbers of a loss come from the samples' seeds (`Batch.seed`), so a resumed run repeats the same losses
without saved random states, and processes that share a batch draw the same numbers as one process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from restore_lab.types import Batch


class Trainable(nn.Module):
    """The base class of methods and priors: a loss, trainable parameters, and the export at the end of training.

    Attributes:
        divisible: whether the loss of a batch is the mean of the losses of its parts, so that processes can share it.
    """

    divisible = True

    @property
    def device(self) -> torch.device:
        """The device of the first parameter."""
        return next(self.parameters()).device

    def loss(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        """The losses of one batch by name; "loss" is minimised, all others have no gradients.

        Args:
            batch: pairs of images, or images.
            step: number of optimiser steps so far.
        """
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Metrics of one batch by name, such as "psnr_restored", and "restored", images (B, 3, H, W) in [0, 1].

        Optional: a class without it is not validated.
        """
        raise NotImplementedError(f"{type(self).__name__} has nothing to validate")

    @classmethod
    def has_validation(cls) -> bool:
        """Whether the class implements `validate`."""
        return cls.validate is not Trainable.validate

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name."""
        return trainable_parameters(self)

    def param_groups(self) -> list[dict[str, Any]]:
        """The optimiser's parameter groups; the gradients of each are clipped separately."""
        return [{"params": list(self.trainable().values())}]

    def training_state(self) -> dict[str, Tensor]:
        """The tensors by name that a resumed training needs besides the trainable parameters."""
        return {}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the tensors of `training_state`."""

    def load_weights(self, file: Path, *, partial: bool = False) -> None:
        """Load the weights in a file written by `export`.

        Args:
            file: the weights.
            partial: allow an earlier stage's file without some of the parts, which keep their weights.
        """
        raise ValueError(f"{type(self).__name__} starts from no weights; set weights=null")

    def load_tensors(self, tensors: Mapping[str, Tensor], *, file: Path, partial: bool = False) -> None:
        """Load tensors by name; error messages name `file`, which holds them or will."""
        raise ValueError(f"{type(self).__name__} starts from no weights; set weights=null")

    def export_state(self) -> dict[str, Tensor] | None:
        """The tensors that `export` writes, by name; None for a result in another format."""
        return None

    def export(self, folder: Path) -> None:
        """Write the result (weights, and all that is needed to load them) into an existing folder."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its result is written")


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a module that require gradients, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def sum_losses(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The terms of a loss by name, without gradients, and their sum as "loss"."""
    terms = {name: value.detach() for name, value in losses.items()}
    return {**terms, "loss": torch.stack(list(losses.values())).sum()}


def mean_psnr(images: Mapping[str, Tensor], hq_BCHW: Tensor) -> dict[str, Tensor]:
    """The mean PSNR in dB of each batch of images in [0, 1], as "psnr_<name>"."""
    mse = {name: (image_BCHW - hq_BCHW).square().mean(dim=(1, 2, 3)) for name, image_BCHW in images.items()}
    return {f"psnr_{name}": (-10 * mse_B.log10()).mean() for name, mse_B in mse.items()}
